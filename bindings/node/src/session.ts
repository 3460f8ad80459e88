// One call of one room.

import type { Client } from './client.js';
import { MatrixRTCError } from './errors.js';
import { call, encode } from './library.js';
import { EventSource } from './source.js';
import type {
  EventOf,
  JoinParams,
  JSONObject,
  MediaKey,
  Membership,
  SessionInfo,
  SFU,
  SFUToken,
} from './types.js';

/** One call of one room. Made by `Client.session`. */
export class Session extends EventSource {
  readonly client: Client;
  readonly roomId: string;
  readonly #handle: number;
  readonly #leaving = new Set<() => void>();
  #open = true;

  /** @internal */
  constructor(client: Client, roomId: string, handle: number) {
    super();
    this.client = client;
    this.roomId = roomId;
    this.#handle = handle;
  }

  /**
   * Announces this device in the call and keeps that true until `leave`, in the background:
   * `status_changed` tells how far it is, `membership_manager_error` why it is no further (a refused
   * login, a room that we are not in, a missing permission, ...).
   */
  join(params: JoinParams = {}): void {
    call('mrtc_session_join', this.#handle, encode(params));
  }

  /**
   * Leaves. Resolves to whether the leave reached the server within `timeoutMs` (absent: waits for
   * as long as it takes); it goes on trying after that.
   */
  leave(timeoutMs?: number): Promise<boolean> {
    return new Promise((resolve) => {
      const done = (sent: boolean): void => {
        this.off('left', left);
        this.#leaving.delete(ended);
        clearTimeout(timer);
        resolve(sent);
      };
      const left = (event: { sent: boolean }): void => done(event.sent);
      const ended = (): void => done(false);
      // Throwing here rejects the promise, with nothing registered yet.
      this.leaveSoon();
      this.once('left', left);
      this.#leaving.add(ended);
      const timer = timeoutMs === undefined ? undefined : setTimeout(ended, timeoutMs);
    });
  }

  /** Begins to leave; the event `left` tells the outcome. */
  leaveSoon(): void {
    call('mrtc_session_leave', this.#handle);
  }

  /** Closes the session; if it is joined, it leaves in the background. */
  close(): void {
    if (!this.#open) return;
    call('mrtc_session_close', this.#handle);
    this.client._forget(this.#handle);
    this._end();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  /** What is true of the session now. Like all that follow it throws `MRTC_ERR_INVALID_HANDLE` once it is closed. */
  info(): SessionInfo {
    return call('mrtc_session_info', this.#handle) as SessionInfo;
  }

  /** The members of the call, oldest first. */
  get memberships(): Membership[] {
    return (call('mrtc_session_memberships', this.#handle) as { memberships: Membership[] }).memberships;
  }

  /** Looks at the members again. Not needed where the library syncs. */
  onMembershipUpdate(): void {
    call('mrtc_session_on_membership_update', this.#handle);
  }

  /** Changes the call intent of our membership; null removes it. */
  updateIntent(intent: string | null): void {
    call('mrtc_session_update_intent', this.#handle, intent);
  }

  /** Replaces the application data of our membership. */
  updateApplicationData(data: JSONObject): void {
    call('mrtc_session_update_application_data', this.#handle, encode(data));
  }

  /** The media keys that are held: our own first, then by member, oldest first, and by index. */
  encryptionKeys(): MediaKey[] {
    return (call('mrtc_session_encryption_keys', this.#handle) as { keys: MediaKey[] }).keys;
  }

  /** The media keys of one device, by index; null where none is known. */
  participantKeys(userId: string, deviceId: string): MediaKey[] | null {
    return (call('mrtc_session_participant_keys', this.#handle, userId, deviceId) as { keys: MediaKey[] | null }).keys;
  }

  /** Tells every key that is held once more, as events `encryption_key_changed`. */
  reemitEncryptionKeys(): void {
    call('mrtc_session_reemit_encryption_keys', this.#handle);
  }

  /**
   * Takes in a room event `io.element.call.encryption_keys`, plain or already decrypted; one that
   * is malformed is logged and ignored. Not needed where the library syncs.
   */
  onCallEncryption(event: object): void {
    call('mrtc_session_on_call_encryption', this.#handle, encode(event));
  }

  /** What to connect to: the SFUs where the members publish, and where we do. */
  get sfus(): SFU[] {
    return (call('mrtc_session_sfus', this.#handle) as { sfus: SFU[] }).sfus;
  }

  /**
   * The token for an SFU (absent: where we publish), kept fresh from now on: `sfu_token_refreshed`
   * and `sfu_failed` tell. Rejects with `MRTC_ERR_SFU` when an attempt fails, and when none came
   * within `timeoutMs`.
   */
  sfuToken(serviceUrl?: string, timeoutMs = 30_000): Promise<SFUToken> {
    return new Promise((resolve, reject) => {
      const held = (): SFUToken | undefined =>
        call('mrtc_session_sfu_token', this.#handle, encode({ service_url: serviceUrl })) as SFUToken | undefined;
      const done = (): void => {
        this.off('sfu_token_refreshed', refreshed);
        this.off('sfu_failed', failed);
        this.#leaving.delete(ended);
        clearTimeout(timer);
      };
      const refreshed = (): void => {
        const token = held();
        if (token) {
          done();
          resolve(token);
        }
      };
      const fail = (reason: EventOf<'sfu_failed'>['reason'], message: string): void => {
        done();
        reject(new MatrixRTCError({ status: 'MRTC_ERR_SFU', message, reason }));
      };
      const failed = (event: EventOf<'sfu_failed'>): void => {
        const named = serviceUrl ?? this.sfus.find((sfu) => sfu.publish)?.service_url;
        if (event.service_url === named) fail(event.reason, event.message);
      };
      const ended = (): void => fail('unreachable', 'the session is closed');
      let timer: ReturnType<typeof setTimeout> | undefined;
      const token = held(); // throwing here rejects the promise, with nothing registered yet
      if (token) {
        resolve(token);
        return;
      }
      this.on('sfu_token_refreshed', refreshed);
      this.on('sfu_failed', failed);
      this.#leaving.add(ended);
      timer = setTimeout(() => fail('unreachable', `no token within ${timeoutMs} ms`), timeoutMs);
    });
  }

  /**
   * Tells of the media connection to an SFU (absent: where we publish), and, with `connected` false,
   * what the SFU or its SDK said.
   */
  sfuConnected(connected: boolean, serviceUrl?: string, said?: { error?: string; httpStatus?: number }): void {
    const given = { service_url: serviceUrl, connected, error: said?.error, http_status: said?.httpStatus };
    call('mrtc_session_sfu_connected', this.#handle, encode(given));
  }

  /**
   * Has our delayed leave handed over to the authorisation service while we are connected to the
   * SFU that we publish to, or keeps it ours; `leave_delegated_changed` tells.
   */
  delegateLeave(delegate = true): void {
    call('mrtc_session_delegate_leave', this.#handle, Number(delegate));
  }

  /** Why the session is as it is, for a bug report; without secrets. */
  debugSnapshot(): JSONObject {
    return call('mrtc_session_debug_snapshot', this.#handle) as JSONObject;
  }

  /** @internal */
  override _end(): void {
    this.#open = false;
    super._end();
    for (const ended of [...this.#leaving]) ended();
  }
}
