/* The part of the CUDA driver that Triton calls. Every call succeeds and nothing happens. */
#include "cuda.h"

#define EXPORT __attribute__((visibility("default"))) CUresult CUDAAPI

static int handle; /* contexts, modules and functions all point here */

EXPORT cuInit(unsigned int flags) { return CUDA_SUCCESS; }
EXPORT cuDriverGetVersion(int *version) { *version = 13000; return CUDA_SUCCESS; }
EXPORT cuDeviceGetCount(int *count) { *count = 1; return CUDA_SUCCESS; }
EXPORT cuDeviceGet(CUdevice *device, int index) { *device = index; return CUDA_SUCCESS; }
EXPORT cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
  *context = (CUcontext)&handle;
  return CUDA_SUCCESS;
}
EXPORT cuCtxGetCurrent(CUcontext *context) { *context = (CUcontext)&handle; return CUDA_SUCCESS; }
EXPORT cuCtxSetCurrent(CUcontext context) { return CUDA_SUCCESS; }
EXPORT cuCtxGetDevice(CUdevice *device) { *device = 0; return CUDA_SUCCESS; }
EXPORT cuCtxGetLimit(size_t *value, CUlimit limit) { *value = 1 << 20; return CUDA_SUCCESS; }
EXPORT cuCtxSetLimit(CUlimit limit, size_t value) { return CUDA_SUCCESS; }
EXPORT cuGetErrorString(CUresult error, const char **text) { *text = "pretended"; return CUDA_SUCCESS; }

/* An H100. */
EXPORT cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
  switch (attribute) {
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = 232448; break;
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *value = 233472; break;
  case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *value = 65536; break;
  case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 132; break;
  case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
  default: *value = 1;
  }
  return CUDA_SUCCESS;
}

EXPORT cuModuleLoadData(CUmodule *module, const void *image) { *module = (CUmodule)&handle; return CUDA_SUCCESS; }
EXPORT cuModuleUnload(CUmodule module) { return CUDA_SUCCESS; }
EXPORT cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  *function = (CUfunction)&handle;
  return CUDA_SUCCESS;
}
EXPORT cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
  *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : attribute == CU_FUNC_ATTRIBUTE_NUM_REGS ? 128 : 0;
  return CUDA_SUCCESS;
}
EXPORT cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) { return CUDA_SUCCESS; }
EXPORT cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) { return CUDA_SUCCESS; }
EXPORT cuOccupancyMaxActiveClusters(int *count, CUfunction function, const CUlaunchConfig *config) {
  *count = 1;
  return CUDA_SUCCESS;
}
EXPORT cuPointerGetAttribute(void *value, CUpointer_attribute attribute, CUdeviceptr pointer) {
  *(CUdeviceptr *)value = pointer;
  return CUDA_SUCCESS;
}
EXPORT cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **arguments, void **extra) {
  return CUDA_SUCCESS;
}
