/* The remedy that our library has for slow calls on Node's main thread, so that like is held against like. */
#include "../../capi/stack.c"
