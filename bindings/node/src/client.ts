// One device of one Matrix account, and the way of its events into Node's event loop.

import { Socket } from 'node:net';
import { MatrixRTCError } from './errors.js';
import { call, encode } from './library.js';
import { Session } from './session.js';
import { EventSource } from './source.js';
import type { ClientConfig, ClientInfo, Feed, MatrixRTCEvent, Response, RoomCall, SessionOptions, Transport } from './types.js';

// Events taken before other work of the event loop gets its turn.
const BATCH = 256;

/**
 * One device of one Matrix account.
 *
 * Events are read when the library's descriptor becomes readable: nothing is ever called from a
 * foreign thread. Like a server that listens, a client keeps the process alive from `start` (or,
 * host-driven, from its first session) until it has stopped; `unref` lets the process end. What is
 * refused is thrown as MatrixRTCError.
 */
export class Client extends EventSource {
  readonly #handle: number;
  readonly #sessions = new Map<number, Session>();
  readonly #socket: Socket;
  #open = true;
  #closing: Promise<void> | undefined;

  constructor(config: ClientConfig) {
    super();
    const handle: [number] = [0];
    call('mrtc_client_new', encode(config), handle);
    this.#handle = handle[0];
    try {
      const fd: [number] = [-1];
      call('mrtc_client_event_fd', this.#handle, fd);
      this.#socket = new Socket({ fd: fd[0], readable: true, writable: false });
    } catch (error) {
      call('mrtc_client_free', this.#handle);
      throw error;
    }
    this.#socket.on('data', () => this.#read());
    this.#socket.on('error', () => this.#socket.destroy());
    this.#socket.unref();
  }

  /** Begins to log in and sync, in the background; `sync_state` tells what comes of it. */
  start(): void {
    call('mrtc_client_start', this.#handle);
    this.ref();
  }

  /** Begins to leave what is joined and then to end sync and requests: `sync_state` "stopped". */
  stop(): void {
    call('mrtc_client_stop', this.#handle);
  }

  /** Leaves what is joined, for at most `timeoutMs`, and frees the client. */
  close(timeoutMs = 12_000): Promise<void> {
    this.#closing ??= this.#close(timeoutMs);
    return this.#closing;
  }

  async #close(timeoutMs: number): Promise<void> {
    if (!this.#open) return;
    try {
      const { state, mode } = this.info();
      if (mode === 'managed' && (state === 'started' || state === 'stopping')) {
        await this.#stopped(timeoutMs);
      }
    } catch (error) {
      // There is nothing left to stop.
      if (!(error instanceof MatrixRTCError && error.status === 'MRTC_ERR_CLIENT_FAILED')) throw error;
    } finally {
      this.free();
    }
  }

  #stopped(timeoutMs: number): Promise<void> {
    return new Promise((resolve, reject) => {
      const done = (): void => {
        clearTimeout(timer);
        this.off('sync_state', stateChanged);
        this.off('client_failed', done);
        resolve();
      };
      const stateChanged = (event: { state: string }): void => {
        if (event.state === 'stopped') done();
      };
      const timer = setTimeout(done, timeoutMs);
      this.on('sync_state', stateChanged);
      this.on('client_failed', done);
      try {
        this.ref();
        this.stop();
      } catch (error) {
        done();
        reject(error);
      }
    });
  }

  /** Frees the client at once: calls that are joined are left to their delayed leave. */
  free(): void {
    if (!this.#open) return;
    this.#open = false;
    this.#socket.destroy();
    call('mrtc_client_free', this.#handle);
    for (const session of this.#sessions.values()) session._end();
    this.#sessions.clear();
    this._end();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /**
   * Opens the call of a room, by its id, which need not be synced yet. Its events tell what changes
   * from now on: who is there already is in `Session.memberships`.
   */
  session(roomId: string, options: SessionOptions = {}): Session {
    const handle: [number] = [0];
    call('mrtc_session_open', this.#handle, roomId, encode(options), handle);
    const session = new Session(this, roomId, handle[0]);
    this.#sessions.set(handle[0], session);
    if (this.info().mode === 'host_driven') this.ref();
    return session;
  }

  /** The session that an event belongs to. */
  sessionOf(event: MatrixRTCEvent): Session | undefined {
    return event.session === undefined ? undefined : this.#sessions.get(event.session);
  }

  /** What is true of the client now. Like all that follow it throws `MRTC_ERR_INVALID_HANDLE` once it is closed. */
  info(): ClientInfo {
    return call('mrtc_client_info', this.#handle) as ClientInfo;
  }

  /** Every call that is going on in the rooms of the account. */
  sessions(): RoomCall[] {
    return (call('mrtc_client_sessions', this.#handle) as { sessions: RoomCall[] }).sessions;
  }

  /** Where the homeserver offers to have the media of calls; undefined while that is not known. */
  transports(): Transport[] | undefined {
    const answer = call('mrtc_client_transports', this.#handle) as { transports: Transport[]; known: boolean };
    return answer.known ? answer.transports : undefined;
  }

  /** A new token of the same device, after `sync_state` "error". */
  setAccessToken(accessToken: string, refreshToken?: string): void {
    const token = { access_token: accessToken, refresh_token: refreshToken };
    call('mrtc_client_set_access_token', this.#handle, encode(token));
  }

  /** Host-driven: what the host has received. */
  feed(received: Feed): void {
    call('mrtc_client_feed', this.#handle, encode(received));
  }

  /** Host-driven: the answer to an event `request`. */
  respond(response: Response): void {
    call('mrtc_client_respond', this.#handle, encode(response));
  }

  /** Host-driven with a manual clock: tells the time; when to call again, in `boot_ms`. */
  advance(time: { boot_ms?: number; wall_ts?: number }): number | null {
    return (call('mrtc_client_advance', this.#handle, encode(time)) as { deadline_ms: number | null }).deadline_ms;
  }

  /** Keeps the process alive while the client is open. */
  ref(): this {
    this.#socket.ref();
    return this;
  }

  /** Lets the process end although the client is open. */
  unref(): this {
    this.#socket.unref();
    return this;
  }

  /** @internal */
  _forget(session: number): void {
    this.#sessions.delete(session);
  }

  #read(): void {
    let more = true;
    try {
      for (let i = 0; i < BATCH && this.#open; i++) {
        const event = call('mrtc_client_next_event', this.#handle, 0) as MatrixRTCEvent | undefined;
        if (!event) {
          more = false;
          return;
        }
        this.#dispatch(event);
      }
    } finally {
      // Also when a listener threw: its error is the process's to handle, the rest still comes.
      if (more && this.#open) setImmediate(() => this.#read());
    }
  }

  #dispatch(event: MatrixRTCEvent): void {
    try {
      this.sessionOf(event)?._deliver(event);
    } finally {
      this._deliver(event);
      if (event.event === 'sync_state' && event.state === 'stopped') this.unref();
    }
  }
}
