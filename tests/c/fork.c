/* A child that is forked after the library was loaded is told so by every function and does not
 * hang; the parent goes on; a program that is executed in the child is free. */
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "every.h"

static int ends_well(pid_t child) {
  int status = -1;
  return waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static void in_child(mrtc_client client, mrtc_session session, char *from_parent) {
  passed = failed = 0;
  alarm(240); /* a hang is a failure as well */
  for (int i = 0; i < FUNCTIONS; i++) {
    char *out = NULL;
    uint64_t handle = every[i].kind == SESSION ? session : client;
    mrtc_status status = every[i].call(handle, "{}", &out);
    CHECK(status == MRTC_ERR_FORKED, "%s in a forked child: %s", every[i].name, mrtc_status_name(status));
    int has_out = strcmp(every[i].name, "mrtc_set_log_callback") != 0;
    CHECK(!has_out || has(out, "{\"status\":\"MRTC_ERR_FORKED\",\"message\":"), "%s says it: %s", every[i].name, out);
    mrtc_free(out);
    CHECK(every[i].call(0, NULL, NULL) == MRTC_ERR_FORKED, "%s without anything", every[i].name);
  }
  mrtc_free(from_parent);
  CHECK(mrtc_abi_version() == MRTC_ABI_VERSION && mrtc_version() && mrtc_status_name(MRTC_ERR_FORKED),
        "what answers no status works");
  fflush(stdout);
  _exit(failed != 0 || passed == 0);
}

int main(int argc, char **argv) {
  char *out = NULL;
  if (argc > 1) { /* what the child executes */
    mrtc_client c = new_client("real");
    OK(mrtc_client_free(c, &out));
    return failed != 0;
  }
  mrtc_client client = new_client("real");
  mrtc_session session = open_session(client);
  CHECK(mrtc_client_info(client, &out) == MRTC_OK && out, "something to free in the child");
  for (int i = 0; i < 3; i++) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) in_child(client, session, out);
    CHECK(ends_well(child), "every function refuses a forked child");
    mrtc_session opened = 0;
    char room[64], *error = NULL;
    snprintf(room, sizeof room, "!after%d:example.test", i);
    expect_at(__LINE__, "the parent goes on", mrtc_session_open(client, room, NULL, &opened, &error), MRTC_OK, &error, NULL);
  }
  mrtc_free(out);
  out = NULL;
  pid_t child = fork();
  if (child == 0) {
    execl(argv[0], argv[0], "again", (char *)NULL);
    _exit(1);
  }
  CHECK(ends_well(child), "a program that is executed in a child can use the library");
  OK(mrtc_client_free(client, &out));
  return summary();
}
