# The CUDA kernels, in a module of their own: it links the CUDA runtime statically and needs a driver only when it is
# used. Built when nvcc is found; SELECTIVE_KERNELS_CUDA, as a definition or in the environment, decides otherwise.
set(SELECTIVE_KERNELS_CUDA_DEFAULT AUTO)
if(DEFINED ENV{SELECTIVE_KERNELS_CUDA})
  set(SELECTIVE_KERNELS_CUDA_DEFAULT $ENV{SELECTIVE_KERNELS_CUDA})
endif()
set(SELECTIVE_KERNELS_CUDA ${SELECTIVE_KERNELS_CUDA_DEFAULT} CACHE STRING "Build the CUDA kernels: AUTO, ON or OFF")
set(SELECTIVE_KERNELS_CUDA_ARCHITECTURES "80;90;100" CACHE STRING
    "Compute capabilities of the CUDA kernels, ascending; of the last one PTX, too, for newer GPUs")

if(NOT SELECTIVE_KERNELS_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "SELECTIVE_KERNELS_CUDA: expected AUTO, ON or OFF, got ${SELECTIVE_KERNELS_CUDA}")
endif()
if(SELECTIVE_KERNELS_CUDA STREQUAL "OFF" OR SELECTIVE_KERNELS_SANITIZE)
  return()
endif()

set(CMAKE_CUDA_ARCHITECTURES OFF)  # named by flags below; CMake before 3.23 would take PTX of each
set(OLDEST_CUDA 12.8)  # the first with compute capability 10.0
include(CheckLanguage)
check_language(CUDA)
if(CMAKE_CUDA_COMPILER)
  enable_language(CUDA)
endif()
if(NOT CMAKE_CUDA_COMPILER OR CMAKE_CUDA_COMPILER_VERSION VERSION_LESS OLDEST_CUDA)
  set(MISSING "expected nvcc ${OLDEST_CUDA} or newer, found ${CMAKE_CUDA_COMPILER} ${CMAKE_CUDA_COMPILER_VERSION}")
  if(SELECTIVE_KERNELS_CUDA STREQUAL "ON")
    message(FATAL_ERROR "SELECTIVE_KERNELS_CUDA=ON: ${MISSING}")
  endif()
  message(STATUS "No CUDA kernels: ${MISSING}")
  return()
endif()

set(CUDA_KERNELS indexing merging optim repair scan scan_bfloat16 scan_float16 scan_float32 select squares)
set(CUDA_SOURCES bindings.cpp choosing.cpp scan_bindings.cpp staging.cpp)
list(TRANSFORM CUDA_KERNELS APPEND .cu OUTPUT_VARIABLE CUDA_KERNEL_FILES)
list(APPEND CUDA_SOURCES ${CUDA_KERNEL_FILES})
list(TRANSFORM CUDA_SOURCES PREPEND csrc/cuda/)

# Scores must be the same bits everywhere: no contraction, nothing approximate, subnormals kept.
set(CUDA_FLAGS -Xcompiler=-ffp-contract=off -fmad=false -prec-div=true -prec-sqrt=true -ftz=false --compress-mode=size)
foreach(architecture IN LISTS SELECTIVE_KERNELS_CUDA_ARCHITECTURES)
  list(APPEND CUDA_FLAGS "SHELL:-gencode arch=compute_${architecture},code=sm_${architecture}")
endforeach()
list(GET SELECTIVE_KERNELS_CUDA_ARCHITECTURES -1 NEWEST)
list(APPEND CUDA_FLAGS "SHELL:-gencode arch=compute_${NEWEST},code=compute_${NEWEST}")

pybind11_add_module(_native_cuda MODULE NO_EXTRAS ${CUDA_SOURCES})
set_target_properties(_native_cuda PROPERTIES
  CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON CUDA_EXTENSIONS OFF CUDA_RUNTIME_LIBRARY Static
  CUDA_VISIBILITY_PRESET hidden CXX_VISIBILITY_PRESET hidden)
target_include_directories(_native_cuda PRIVATE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
target_compile_options(_native_cuda PRIVATE
  "$<$<COMPILE_LANGUAGE:CUDA>:${CUDA_FLAGS}>" "$<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off;-Wall;-Wextra>")
string(REPLACE ";" " " CUDA_ARCHITECTURES_TEXT "${SELECTIVE_KERNELS_CUDA_ARCHITECTURES}")
target_compile_definitions(_native_cuda PRIVATE "SELECTIVE_CUDA_ARCHITECTURES=\"${CUDA_ARCHITECTURES_TEXT}\"")
pybind11_strip(_native_cuda)
install(TARGETS _native_cuda DESTINATION selective_kernels)
