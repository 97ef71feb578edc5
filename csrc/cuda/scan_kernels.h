// The launch of a read's kernel; one source for each type of tensor, since compiling them takes long.
#pragma once

#include "../convert.h"
#include "scan.h"

namespace selective::cuda {

void launch_scan_float32(const Place& place, const Reading& reading, const Chunk* chunks, std::int64_t n_chunks);
void launch_scan_bfloat16(const Place& place, const Reading& reading, const Chunk* chunks, std::int64_t n_chunks);
void launch_scan_float16(const Place& place, const Reading& reading, const Chunk* chunks, std::int64_t n_chunks);

inline void launch_scan(const Place& place, DType dtype, const Reading& reading, const Chunk* chunks,
                        std::int64_t n_chunks) {
  switch (dtype) {
    case DType::bfloat16:
      return launch_scan_bfloat16(place, reading, chunks, n_chunks);
    case DType::float16:
      return launch_scan_float16(place, reading, chunks, n_chunks);
    default:
      return launch_scan_float32(place, reading, chunks, n_chunks);
  }
}

}  // namespace selective::cuda
