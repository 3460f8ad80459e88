/* The Go runtime asks for the bounds of the thread's stack whenever a call arrives on a stack that
 * it does not know. koffi (Node) calls from a stack of its own, so that is every call, and on the
 * main thread glibc reads /proc/self/maps to answer: 48 us. A thread's own stack does not move, so
 * the first answer holds. Linked with -Wl,--wrap=pthread_getattr_np. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stddef.h>

int __real_pthread_getattr_np(pthread_t thread, pthread_attr_t *attr);
int __wrap_pthread_getattr_np(pthread_t thread, pthread_attr_t *attr);

static __thread void *stack_addr;
static __thread size_t stack_size;

int __wrap_pthread_getattr_np(pthread_t thread, pthread_attr_t *attr) {
  int own = pthread_equal(thread, pthread_self());
  int err;
  if (own && stack_size != 0) {
    err = pthread_attr_init(attr);
    return err != 0 ? err : pthread_attr_setstack(attr, stack_addr, stack_size);
  }
  err = __real_pthread_getattr_np(thread, attr);
  if (err == 0 && own && pthread_attr_getstack(attr, &stack_addr, &stack_size) != 0) stack_size = 0;
  return err;
}
