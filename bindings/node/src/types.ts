// What goes into the library and comes out of it, field for field as in include/matrixrtc.h:
// durations end in `_ms`, Unix times (milliseconds) in `_ts`.

import type { ErrorObject, SFUFailure } from './errors.js';

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
  /** In place of a password. */
  access_token?: string;
  /** Renews an access token that expires: `token_refreshed` tells the new ones. */
  refresh_token?: string;
  /** Absent: each login is a new device. */
  device_id?: string;
  initial_device_display_name?: string;
  /** http, https or socks5. */
  proxy_url?: string;
  /** PEM file, trusted beside the system's certificates. */
  ca_file?: string;
  user_agent?: string;
  /**
   * A SQLite file for the encryption keys of the device, encrypted with `pickle_key`; in memory by
   * default. A device that is used again needs its file; one belongs to one client at a time.
   */
  store_path?: string;
  pickle_key?: string;
  /** Of the account's secret storage, to have the device verified. */
  recovery_key?: string;
  sfu_trust?: SFUTrust;
  /** For so long does a membership count, whatever expiry its member has written. A day. */
  max_membership_expiry_ms?: number;
}

/** The host has a Matrix client of its own: it answers the events `request`. */
export interface HostDrivenConfig {
  mode: 'host_driven';
  user_id: string;
  device_id: string;
  /** `manual`: the time is what `Client.advance` says. */
  clock?: 'real' | 'manual';
  sfu_trust?: SFUTrust;
  max_membership_expiry_ms?: number;
}

/**
 * Which authorisation services may have an OpenID token of ours: those that the members of a call
 * name (the default), those that the homeserver offers, or these.
 */
export type SFUTrust = 'members' | 'homeserver' | string[];

export type ClientConfig = ManagedConfig | HostDrivenConfig;

export interface SessionOptions {
  /** `m.call` by default. */
  application?: string;
  /** Empty by default: the call of the room. */
  call_id?: string;
}

/** How to be in a call. Durations are in ms. */
export interface JoinParams {
  /** Where our media goes, preferred first. Absent: the first that the homeserver offers. */
  foci_preferred?: Transport[];
  /** A transport to put in front of these, or how members choose theirs (`multi_sfu` by default). */
  foci_active?: { type?: string; focus_selection: 'multi_sfu' | 'oldest_membership' } | Transport;
  /** The generation of the membership event. */
  dialect?: 'state';
  /** Of our membership; made of user and device by default. */
  member_id?: string;
  /** `audio`, `video`, ... */
  call_intent?: string;
  /** Further fields of our membership. */
  application_data?: JSONObject;
  /** So long after our last sign of life the homeserver removes us (MSC4140). 10000 by default. */
  delayed_leave_delay_ms?: number;
  /** How often we give a sign of life. 4000. */
  delayed_leave_restart_ms?: number;
  /** One that is not answered for so long is given again. 2000. */
  delayed_leave_restart_timeout_ms?: number;
  /** For so long our membership counts unless it is refreshed. 14400000. */
  membership_expiry_ms?: number;
  /** So much earlier it is refreshed. 5000. */
  membership_expiry_headroom_ms?: number;
  /** The first pause after a failure; later ones are longer. 1000. */
  network_error_retry_ms?: number;
  /** After so many failures in a row `membership_manager_error` tells; it goes on trying. 10. */
  max_network_retries?: number;
  /** The same for refusals of too many requests. 10. */
  max_rate_limit_retries?: number;
  /** Whether there are media keys. Absent: whether the room is encrypted. */
  manage_media_keys?: boolean;
  /** Between the sending of a key and its use. 1000. */
  use_key_delay_ms?: number;
  /** Whoever comes while our key is younger is given that one; later a new one is made. 10000. */
  key_rotation_grace_ms?: number;
  /** Where so many are in the call, keys stay. 0: none. */
  key_rotation_participant_limit?: number;
  /** A key is replaced after it. 5400000. */
  max_key_lifetime_ms?: number;
  /** `encryption_key_missing` tells of a member that is here for so long without a key. 10000. */
  key_missing_after_ms?: number;
  /** Keys of devices not known to be signed by their owner are refused (MSC4153). */
  require_cross_signed?: boolean;
  /** How our keys are sent; `to_device` by default. */
  key_transport?: 'to_device' | 'room_event';
  /** Hand the delayed leave to the authorisation service while we are connected to the SFU. */
  delegate_leave?: boolean;
}

/** A device's membership of a call. Times are Unix times in ms. */
export interface Membership {
  user_id: string;
  device_id: string;
  /** Unique in the call. */
  member_id: string;
  slot_id: string;
  application: string;
  call_id?: string;
  dialect: string;
  event_id: string;
  joined_ts: number;
  expires_ts: number;
  intent?: string;
  /** All fields of the event that are not the membership's own. */
  application_data: JSONObject | null;
  /** How `active_transport` is chosen. */
  focus_selection?: string;
  /** Where its media could be, preferred first. */
  transports: Transport[] | null;
  /** Where its media is. */
  active_transport?: Transport;
  /** Who it is on its SFU. */
  sfu_identity: string;
  scope?: string;
}

/**
 * A media key of a participant. One of our own is to encrypt with while it is `in_use`; those of
 * others are to decrypt with, by `sfu_identity` and `index`.
 */
export interface MediaKey {
  user_id: string;
  device_id: string;
  member_id: string;
  sfu_identity: string;
  /** 0 to 255. */
  index: number;
  /** Base64: `Buffer.from(key, 'base64')` has the bytes. A secret. */
  key: string;
  own: boolean;
  in_use: boolean;
  /** 8 hex digits of the SHA-256 of the key, which may be shown. */
  fingerprint: string;
}

export interface Device {
  user_id: string;
  device_id: string;
}

/** What became of a message to a device; without a reason it was sent. */
export interface Delivery extends Device {
  reason?: string;
}

/** Somebody who publishes on an SFU, and the identity there. */
export interface SFUMember {
  user_id: string;
  device_id: string;
  member_id: string;
  sfu_identity: string;
}

/** A place where the media of a call is. */
export interface SFU {
  /** Of its authorisation service. */
  service_url: string;
  /** Our media goes there. */
  publish: boolean;
  trusted: boolean;
  /** Why it is not trusted. */
  reason?: string;
  /** Of `Session.sfus` only. */
  members?: SFUMember[];
}

/** What lets one enter an SFU: connect to `url` with `jwt`, a credential. */
export interface SFUToken {
  service_url: string;
  url: string;
  jwt: string;
  identity: string;
  room: string;
  expires_ts: number;
  generation: 'state' | 'sticky' | 'homeserver';
}

export type Status = 'Disconnected' | 'Connecting' | 'Connected' | 'Disconnecting';

/** What is true of a session. */
export interface SessionInfo {
  room_id: string;
  call_id: string | null;
  slot_id: string;
  /** We mean to be in the call. */
  joined: boolean;
  /** Where our membership stands on the homeserver. */
  status: Status;
  /** The homeserver may have removed us unheard. */
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
  keys_managed: boolean;
  key_rotation_suppressed: boolean;
  leave_delegated: boolean;
  statistics: { [counter: string]: number };
}

export type SyncState = 'initial' | 'syncing' | 'reconnecting' | 'error' | 'stopped';

/** What is true of a client. */
export interface ClientInfo {
  mode: 'managed' | 'host_driven';
  state: 'created' | 'started' | 'stopping' | 'stopped' | 'failed';
  /** Of the last such event. */
  sync_state: SyncState;
  homeserver_url?: string;
  /** Empty until it is known, as `device_id`. */
  user_id: string;
  device_id: string;
  room_count: number;
  /** Of `sync_state`. */
  last_error: ErrorObject | null;
}

/** A call that is going on in a room, opened or not. */
export interface RoomCall {
  room_id: string;
  slot_id: string;
  call_id: string;
  member_count: number;
  /** Unix time in ms. */
  started_ts: number;
}

/** What every event has beside its own fields. */
export interface Envelope {
  event: string;
  client: number;
  session?: number;
  room_id?: string;
  /** Counts the events of the client. */
  seq: number;
  /** Unix time in ms. */
  ts: number;
}

export interface HTTPRequest {
  method: string;
  /** Not for the homeserver: never send the access token there. */
  base_url?: string;
  path: string;
  query?: { [name: string]: string };
  body?: JSONValue;
}

/** A request to be made as it stands. */
export interface PlainRequest {
  id: number;
  kind:
    | 'send_state'
    | 'schedule_delayed'
    | 'restart_delayed'
    | 'send_delayed'
    | 'cancel_delayed'
    | 'list_delayed'
    | 'get_capabilities'
    | 'get_room_member'
    | 'get_joined_members';
  http: HTTPRequest;
  /** To be sent without an access token. */
  anonymous?: true;
}

/** A message to be encrypted with Olm for each recipient; answered with `deliveries`. */
export interface ToDeviceRequest {
  id: number;
  kind: 'encrypt_and_send_to_device';
  http?: undefined;
  type: string;
  content: JSONObject;
  recipients: Device[];
}

/** An event to be encrypted for the room, if that is encrypted, and sent with this transaction id. */
export interface RoomEventRequest {
  id: number;
  kind: 'encrypt_and_send_event';
  http?: undefined;
  type: string;
  content: JSONObject;
  txn_id: string;
}

interface Fields {
  /** Who came, went and changed since the last one, oldest first, and how many there are. */
  memberships_changed: {
    joined: Membership[];
    left: { membership: Membership; reason: 'left' | 'expired' | 'room_left' | 'invalid' | 'rejoined' }[];
    updated: { before: Membership; after: Membership }[];
    count: number;
  };
  /** Whether we mean to be in the call. */
  join_state_changed: { joined: boolean };
  /** Where our membership stands on the homeserver. */
  status_changed: { status: Status; previous: Status };
  /** The homeserver may have removed us without our hearing of it. */
  probably_left: { probably_left: boolean };
  /** Of our delayed leave. A credential. */
  delay_id_changed: { delay_id: string | null };
  /** Why we are not in the call; recoverable: the library goes on trying. */
  membership_manager_error: { message: string; recoverable: boolean; errcode?: string; http_status?: number };
  /** The homeserver has removed us; we go back in, and `rejoined` tells when we are. */
  membership_lost: { reason: string };
  rejoined: Record<never, never>;
  /** It has ended; `sent`: the homeserver has our leave. */
  left: {
    sent: boolean;
    reason: 'left' | 'closed' | 'stopped' | 'forbidden' | 'room_left' | 'no_transport' | 'no_sync' | 'token_rejected';
  };
  transports_changed: { transports: Transport[] };
  sfus_changed: {
    added: SFU[];
    removed: string[];
    updated: SFU[];
    publish?: { from: string | null; to: string | null };
    ignored: number;
  };
  sfu_token_refreshed: SFUToken;
  sfu_failed: { service_url: string; reason: SFUFailure; message: string; retry_in_ms: number };
  leave_delegated_changed: { delegated: boolean; reason?: string };
  /** A call has begun, or ended, in a room of the account, opened or not. */
  session_started: { slot_id: string; call_id: string };
  session_ended: { slot_id: string; call_id: string };
  /** A key came, or ours was made (not in use) or has come into use: use it from then on. */
  encryption_key_changed: MediaKey;
  /** A member is here for some time and none of its keys has come; not missing: one came. */
  encryption_key_missing: Device & { member_id: string; missing: boolean };
  /** Our key did not reach a device, and is tried again; delivered: it did. */
  encryption_key_undelivered: Delivery & { member_id: string; index: number; delivered: boolean };
  key_rotation_suppressed_changed: { suppressed: boolean };
  sync_state: { state: SyncState; error?: ErrorObject };
  request: PlainRequest | ToDeviceRequest | RoomEventRequest;
  client_failed: { message: string };
  token_refreshed: { access_token: string; refresh_token?: string; expires_in_ms?: number };
  /** Events were lost because nobody read them: read again what you need. */
  resync_required: { lost: number };
}

export type EventName = keyof Fields;

/** One event; narrows by its field `event`. */
export type MatrixRTCEvent = { [K in EventName]: Envelope & { event: K } & Fields[K] }[EventName];

export type EventOf<K extends EventName> = Extract<MatrixRTCEvent, { event: K }>;

/**
 * The answer to a `request` as it came (`body`: decoded JSON, or text), or that none came. To
 * `encrypt_and_send_to_device` what became of it, in as many portions as the host likes.
 */
export type Response =
  | { id: number; status: number; headers?: { [name: string]: string }; body?: JSONValue }
  | { id: number; network_error: string }
  | { id: number; deliveries: Delivery[]; more?: boolean };

/** A to-device message with the facts of its decryption. */
export interface ToDeviceMessage {
  type: string;
  content: JSONObject;
  sender: string;
  /** The device that encrypted it. */
  sender_device?: string;
  /** Its curve25519 key. */
  sender_key?: string;
  encrypted: boolean;
  cross_signed?: boolean;
}

/**
 * What the host has received: the body of a /sync answer, the state of a room, to-device messages
 * or events of a room after their decryption.
 */
export type Feed =
  | { sync: unknown }
  | { state: { room_id: string; events: unknown[]; complete?: boolean } }
  | { to_device: ToDeviceMessage[] }
  | { timeline: { room_id: string; events: unknown[] } };
