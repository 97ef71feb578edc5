#include "scan.cuh"
#include "scan_kernels.h"

namespace selective::cuda {

void launch_scan_float32(const Place& place, const Reading& reading, const Chunk* chunks, std::int64_t n_chunks) {
  launch_scan_of<float>(place, reading, chunks, n_chunks);
}

}  // namespace selective::cuda
