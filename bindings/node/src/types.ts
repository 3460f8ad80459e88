// What goes into the library and comes out of it, field for field as in include/matrixrtc.h:
// durations end in `_ms`, Unix times (milliseconds) in `_ts`.

import type { ErrorObject } from './errors.js';

export type JSONValue = null | boolean | number | string | JSONValue[] | { [field: string]: JSONValue };
export type JSONObject = { [field: string]: JSONValue };

/** Where media is, for instance a LiveKit SFU. */
export interface Transport {
  type: string;
  livekit_service_url?: string;
  livekit_alias?: string;
  [field: string]: JSONValue | undefined;
}

/** An account on a homeserver: the library syncs and sends. */
export interface ManagedConfig {
  mode?: 'managed';
  homeserver_url: string;
  /** With `password`; with an `access_token` it is checked. */
  user_id?: string;
  password?: string;
  access_token?: string;
  refresh_token?: string;
  device_id?: string;
  initial_device_display_name?: string;
  proxy_url?: string;
  /** PEM file, trusted beside the system's certificates. */
  ca_file?: string;
  user_agent?: string;
}

/** The host has a Matrix client of its own: it answers the events `request`. */
export interface HostDrivenConfig {
  mode: 'host_driven';
  user_id: string;
  device_id: string;
  clock?: 'real' | 'manual';
}

export type ClientConfig = ManagedConfig | HostDrivenConfig;

export interface SessionOptions {
  /** `m.call` by default. */
  application?: string;
  /** Empty by default: the call of the room. */
  call_id?: string;
}

export interface JoinParams {
  foci_preferred: Transport[];
  foci_active?: { type?: string; focus_selection: string } | Transport;
  dialect?: 'state';
  member_id?: string;
  call_intent?: string;
  application_data?: JSONObject;
  delayed_leave_delay_ms?: number;
  delayed_leave_restart_ms?: number;
  delayed_leave_restart_timeout_ms?: number;
  membership_expiry_ms?: number;
  membership_expiry_headroom_ms?: number;
  network_error_retry_ms?: number;
  max_network_retries?: number;
  max_rate_limit_retries?: number;
}

/** A device's membership of a call. */
export interface Membership {
  user_id: string;
  device_id: string;
  member_id: string;
  slot_id: string;
  application: string;
  call_id?: string;
  dialect: string;
  event_id: string;
  joined_ts: number;
  expires_ts: number;
  intent?: string;
  application_data: JSONObject | null;
  focus_selection?: string;
  transports: Transport[] | null;
  active_transport?: Transport;
  sfu_identity: string;
  scope?: string;
}

export type Status = 'Disconnected' | 'Connecting' | 'Connected' | 'Disconnecting';

export interface SessionInfo {
  room_id: string;
  call_id: string | null;
  slot_id: string;
  joined: boolean;
  status: Status;
  probably_left: boolean;
  /** A credential: who has it can remove us. */
  delay_id: string | null;
  own_membership: Membership | null;
  oldest_membership: Membership | null;
  active_transport: Transport | null;
  consensus_intent: string | null;
  room_version: string;
  encrypted: boolean;
  member_count: number;
  statistics: { [counter: string]: number };
}

export type SyncState = 'initial' | 'syncing' | 'reconnecting' | 'error' | 'stopped';

export interface ClientInfo {
  mode: 'managed' | 'host_driven';
  state: string;
  sync_state: SyncState;
  homeserver_url?: string;
  user_id: string;
  device_id: string;
  room_count: number;
  last_error: ErrorObject | null;
}

/** A call that is going on in a room, opened or not. */
export interface RoomCall {
  room_id: string;
  slot_id: string;
  call_id: string;
  member_count: number;
  started_ts: number;
}

/** What every event has beside its own fields. */
export interface Envelope {
  event: string;
  client: number;
  session?: number;
  room_id?: string;
  seq: number;
  ts: number;
}

export interface HTTPRequest {
  method: string;
  path: string;
  query?: { [name: string]: string };
  body?: JSONValue;
}

interface Fields {
  memberships_changed: {
    joined: Membership[];
    left: { membership: Membership; reason: string }[];
    updated: { before: Membership; after: Membership }[];
    count: number;
  };
  join_state_changed: { joined: boolean };
  status_changed: { status: Status; previous: Status };
  probably_left: { probably_left: boolean };
  delay_id_changed: { delay_id: string | null };
  membership_manager_error: { message: string; recoverable: boolean; errcode?: string; http_status?: number };
  membership_lost: { reason: string };
  rejoined: Record<never, never>;
  left: { sent: boolean; reason: string };
  session_started: { slot_id: string; call_id: string };
  session_ended: { slot_id: string; call_id: string };
  sync_state: { state: SyncState; error?: ErrorObject };
  request: { id: number; kind: string; http: HTTPRequest; anonymous?: boolean };
  client_failed: { message: string };
  token_refreshed: { access_token: string; refresh_token?: string; expires_in_ms?: number };
  /** Events were lost because nobody read them: read again what you need. */
  resync_required: { lost: number };
}

export type EventName = keyof Fields;

/** One event; narrows by its field `event`. */
export type MatrixRTCEvent = { [K in EventName]: Envelope & { event: K } & Fields[K] }[EventName];

export type EventOf<K extends EventName> = Extract<MatrixRTCEvent, { event: K }>;

/** The answer to a `request` as it came (`body`: decoded JSON, or text), or that none came. */
export type Response =
  | { id: number; status: number; headers?: { [name: string]: string }; body?: JSONValue }
  | { id: number; network_error: string };

/** What the host has received: the body of a /sync answer, or the state of a room. */
export type Feed =
  | { sync: unknown }
  | { state: { room_id: string; events: unknown[]; complete?: boolean } };
