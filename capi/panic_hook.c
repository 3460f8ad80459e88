//go:build mrtc_panic

#include "abi.h"
#include "_cgo_export.h"

__attribute__((visibility("default"))) mrtc_status mrtc_test_panic(mrtc_client client, const char *where, char **out);

mrtc_status mrtc_test_panic(mrtc_client client, const char *where, char **out) {
  return mrtcgo_test_panic(client, (char *)where, out);
}
