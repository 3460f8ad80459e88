/* The library, loaded when the program already runs: in a child, after the fork, it works; and once
 * it is loaded, closing it does not unload it. load LIBRARY */
#include <dlfcn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <matrixrtc.h>
#include <stdio.h>
#include <string.h>

static void *library;

/* The function of a name, as the header declares it. */
#define FN(name) ((__typeof__(name) *)dlsym(library, #name))

static int works(const char *path) {
  const char *config = "{\"mode\":\"host_driven\",\"user_id\":\"@me:example.test\",\"device_id\":\"ME\"}";
  mrtc_client client = 0;
  char *out = NULL;
  if (!(library = dlopen(path, RTLD_NOW | RTLD_LOCAL))) return printf("%s\n", dlerror()), 0;
  if (FN(mrtc_client_new)(config, &client, &out) != MRTC_OK) return printf("%s\n", out), 0;
  if (FN(mrtc_client_info)(client, &out) != MRTC_OK || !strstr(out, "@me:example.test")) return 0;
  FN(mrtc_free)(out);
  return FN(mrtc_client_free)(client, NULL) == MRTC_OK;
}

static int child_can_use_it(const char *path) {
  int status = -1;
  pid_t child = fork();
  if (child == 0) {
    alarm(240);
    int ok = works(path);
    fflush(stdout);
    _exit(!ok);
  }
  return waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

int main(int argc, char **argv) {
  if (argc != 2) return 2;
  int fork_then_load = child_can_use_it(argv[1]);
  int again = child_can_use_it(argv[1]);
  int loaded = works(argv[1]);
  dlclose(library);
  dlclose(library);
  void *still = dlopen(argv[1], RTLD_NOW | RTLD_NOLOAD);
  int ok[] = {fork_then_load, again, loaded, still != NULL, works(argv[1])};
  static const char *const what[] = {"a child that loads it can use it", "so can another", "so can their parent",
                                     "it is not unloaded", "and works when it is opened again"};
  int passed = 0, count = sizeof ok / sizeof *ok;
  for (int i = 0; i < count; i++) {
    if (ok[i]) passed++;
    else printf("FAILED: %s\n", what[i]);
  }
  printf("%d passed, %d failed\n", passed, count - passed);
  return passed != count;
}
