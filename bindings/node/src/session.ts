// One call of one room.

import type { Client } from './client.js';
import { call, encode } from './library.js';
import { EventSource } from './source.js';
import type { JoinParams, JSONObject, Membership, SessionInfo } from './types.js';

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

  /** Announces this device in the call and keeps that true until `leave`, in the background. */
  join(params: JoinParams): void {
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
