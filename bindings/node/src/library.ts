// The native library: found and loaded by the first call, and called.

import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import koffi from 'koffi';
import { MatrixRTCError, type ErrorObject } from './errors.js';

const ABI_VERSION = 1;
const TIMEOUT = 1;

const CLIENT = 'uint64_t';
const SESSION = 'uint64_t';
const HANDLE_OUT = '_Out_ uint64_t *';
const MS = 'int64_t';
const text = (name: string) => ({ text: name });

// Arguments before the trailing `char **out`, which all of them have.
const SIGNATURES = {
  mrtc_client_new: [text('config'), HANDLE_OUT],
  mrtc_client_start: [CLIENT],
  mrtc_client_stop: [CLIENT],
  mrtc_client_free: [CLIENT],
  mrtc_client_info: [CLIENT],
  mrtc_client_next_event: [CLIENT, MS],
  mrtc_client_event_fd: [CLIENT, '_Out_ int *'],
  mrtc_client_set_access_token: [CLIENT, text('json')],
  mrtc_client_sessions: [CLIENT],
  mrtc_client_transports: [CLIENT],
  mrtc_client_feed: [CLIENT, text('json')],
  mrtc_client_respond: [CLIENT, text('json')],
  mrtc_client_advance: [CLIENT, text('json')],
  mrtc_session_open: [CLIENT, text('room_id'), text('options'), HANDLE_OUT],
  mrtc_session_close: [SESSION],
  mrtc_session_join: [SESSION, text('json')],
  mrtc_session_leave: [SESSION],
  mrtc_session_info: [SESSION],
  mrtc_session_memberships: [SESSION],
  mrtc_session_on_membership_update: [SESSION],
  mrtc_session_update_intent: [SESSION, text('intent')],
  mrtc_session_update_application_data: [SESSION, text('json')],
  mrtc_session_encryption_keys: [SESSION],
  mrtc_session_participant_keys: [SESSION, text('user_id'), text('device_id')],
  mrtc_session_reemit_encryption_keys: [SESSION],
  mrtc_session_on_call_encryption: [SESSION, text('event')],
  mrtc_session_sfus: [SESSION],
  mrtc_session_sfu_token: [SESSION, text('json')],
  mrtc_session_sfu_connected: [SESSION, text('json')],
  mrtc_session_delegate_leave: [SESSION, 'int'],
  mrtc_session_debug_snapshot: [SESSION],
} as const;

type FunctionName = keyof typeof SIGNATURES;
type Argument = string | number | null | [number];
type Native = (...args: (Argument | [string | null])[]) => number;

const native = (type: string | ReturnType<typeof text>): string => (typeof type === 'string' ? type : 'const char *');

interface Loaded {
  functions: Record<FunctionName, Native>;
  version: string;
}

function candidates(): string[] {
  const named = process.env['MATRIXRTC_LIBRARY'];
  if (named) return [named];
  // This file is dist/src/library.js of the package, or of bindings/node in a source checkout.
  const places = ['../../libmatrixrtc.so', '../../../../build/libmatrixrtc.so'];
  const files = places.map((place) => fileURLToPath(new URL(place, import.meta.url)));
  return [...files.filter((file) => existsSync(file)), 'libmatrixrtc.so.1'];
}

function open(): ReturnType<typeof koffi.load> {
  const failures: string[] = [];
  for (const path of candidates()) {
    try {
      return koffi.load(path);
    } catch (error) {
      failures.push(error instanceof Error ? error.message : String(error));
    }
  }
  throw new Error(
    `libmatrixrtc was not found; set MATRIXRTC_LIBRARY to its path. ${failures.join('; ')}`,
  );
}

let loaded: Loaded | undefined;

function library(): Loaded {
  if (loaded) return loaded;
  const lib = open();
  const abi = lib.func('int mrtc_abi_version()')() as number;
  if (abi !== ABI_VERSION) {
    throw new Error(`libmatrixrtc has ABI version ${abi}, this package needs ${ABI_VERSION}`);
  }
  const free = lib.func('void mrtc_free(void *p)');
  const out = koffi.out(koffi.pointer(koffi.disposable(koffi.types.str, free)));
  const functions = Object.fromEntries(
    Object.entries(SIGNATURES).map(([name, args]) => [name, lib.func(name, 'int32_t', [...args.map(native), out])]),
  ) as unknown as Record<FunctionName, Native>;
  loaded = { functions, version: lib.func('const char *mrtc_version()')() as string };
  return loaded;
}

/** The version of the native library. */
export function version(): string {
  return library().version;
}

/** Koffi takes numbers and buffers for pointers: only strings may get there. */
function checkText(name: string, value: Argument): void {
  if (value === null) return;
  if (typeof value !== 'string') throw new TypeError(`${name}: expected a string, got ${typeof value}`);
  // A C string ends at a NUL: what stands behind one would be lost silently.
  if (value.includes('\0')) {
    throw new MatrixRTCError({
      status: 'MRTC_ERR_INVALID_ARGUMENT',
      path: `/${name}`,
      message: 'expected a string without NUL characters',
    });
  }
}

/** Calls a function and throws its error; its result, decoded, undefined after a timeout. */
export function call(name: FunctionName, ...args: Argument[]): unknown {
  SIGNATURES[name].forEach((type, i) => {
    if (typeof type === 'object') checkText(type.text, args[i] ?? null);
  });
  const out: [string | null] = [null];
  const status = library().functions[name](...args, out);
  const [text] = out;
  if (status < 0) {
    throw new MatrixRTCError(
      text ? (JSON.parse(text) as ErrorObject) : { status: 'MRTC_ERR_INTERNAL', message: 'no reason was given' },
    );
  }
  return status === TIMEOUT || text === null ? undefined : JSON.parse(text);
}

/** A JSON argument; what has no JSON form becomes NULL, which the library refuses by name. */
export function encode(value: unknown): string | null {
  return JSON.stringify(value) ?? null;
}
