/* What the C and the Go half of the shim know of each other. */
#ifndef MRTC_ABI_H
#define MRTC_ABI_H

#include "../include/matrixrtc.h"

#define MRTC_VERSION "0.1.0"

int mrtc_in_callback(void);
void mrtc_call_listener(void *fn, uint64_t handle, const char *event, const char *json, size_t len, void *user_data);
void mrtc_call_log(void *fn, int level, const char *json, size_t len, void *user_data);

#endif
