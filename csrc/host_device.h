// What marks a function that runs on the host and on the device. Other compilers than nvcc see an ordinary function.
#pragma once

#if defined(__CUDACC__)
#define SELECTIVE_HD __host__ __device__
#else
#define SELECTIVE_HD
#endif
