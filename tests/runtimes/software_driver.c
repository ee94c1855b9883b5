/* The CUDA driver's C interface over ordinary memory: what the ctypes binding is tested against
   where there is no GPU. Compiled by the tests; behaviour by -D. It proves nothing about a GPU. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#ifndef DEVICES
#define DEVICES 2
#endif
#ifndef INIT_STATUS
#define INIT_STATUS 0
#endif
#define LIMIT ((size_t)1 << 24)

typedef unsigned long long address_t;

static int live, initialized;
static int context_of_device[DEVICES + 1];
static int retained[DEVICES + 1];
static __thread void *current;

/* Beyond the interface, for assertions. */
int live_allocations(void) { return live; }
int retained_contexts(void) {
    int sum = 0;
    for (int i = 0; i < DEVICES; i++) sum += retained[i];
    return sum;
}

int cuInit(unsigned flags) {
    initialized = INIT_STATUS == 0 && flags == 0;
    return INIT_STATUS;
}
int cuDriverGetVersion(int *version) { *version = 13010; return 0; }
int cuDeviceGetCount(int *count) {
    *count = DEVICES;
    return initialized ? 0 : 3;
}
int cuDeviceGet(int *device, int ordinal) {
    *device = 100 + ordinal; /* a handle is not the ordinal */
    return ordinal < DEVICES ? 0 : 101;
}
int cuDeviceGetName(char *name, int length, int device) {
    strncpy(name, device == 100 ? "Software GPU" : "Software GPU, second", (size_t)length);
    return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    if (device < 100) return 101;
    if (attribute == 75) *value = 8;
    else if (attribute == 76) *value = 9;
    else return 1;
    return 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) {
    *bytes = (size_t)24 << 30; /* more than 32 bits hold */
    return device >= 100 ? 0 : 101;
}
int cuGetErrorName(int status, const char **text) {
    if (status == 100) *text = "CUDA_ERROR_NO_DEVICE";
    else if (status == 2) *text = "CUDA_ERROR_OUT_OF_MEMORY";
    else if (status == 201) *text = "CUDA_ERROR_INVALID_CONTEXT";
    else return 1;
    return 0;
}
int cuGetErrorString(int status, const char **text) {
    if (status == 100) { *text = "no CUDA-capable device is detected"; return 0; }
    return 1; /* leaves the text unset, as old drivers do for new statuses */
}
int cuDevicePrimaryCtxRetain(void **context, int device) {
    retained[device - 100]++;
    *context = &context_of_device[device - 100];
    return 0;
}
int cuDevicePrimaryCtxRelease_v2(int device) {
    retained[device - 100]--;
    return 0;
}
int cuCtxSetCurrent(void *context) { current = context; return 0; }
int cuMemAlloc_v2(address_t *address, size_t size) {
    if (!current) return 201;
    if (size > LIMIT) return 2;
    live++;
    *address = (address_t)(size_t)malloc(size);
    return 0;
}
int cuMemFree_v2(address_t address) {
    if (!current) return 201;
    live--;
    free((void *)(size_t)address);
    return 0;
}
int cuMemHostAlloc(void **address, size_t size, unsigned flags) {
    if (!current || flags) return 201;
    if (size > LIMIT) return 2;
    live++;
    *address = malloc(size);
    return 0;
}
int cuMemFreeHost(void *address) {
    if (!current) return 201;
    live--;
    free(address);
    return 0;
}
int cuMemcpyHtoDAsync_v2(address_t to, const void *from, size_t size, void *stream) {
    if (!current || !stream) return 201;
    memcpy((void *)(size_t)to, from, size);
    return 0;
}
int cuMemcpyDtoHAsync_v2(void *to, address_t from, size_t size, void *stream) {
    if (!current || !stream) return 201;
    memcpy(to, (void *)(size_t)from, size);
    return 0;
}
int cuStreamCreate(void **stream, unsigned flags) {
    if (!current || flags != 1) return 201;
    live++;
    *stream = malloc(1);
    return 0;
}
int cuStreamSynchronize(void *stream) { return current && stream ? 0 : 201; }
int cuStreamDestroy_v2(void *stream) {
    live--;
    free(stream);
    return 0;
}
