// Media by LiveKit: the rooms of a call, entered and encrypted as its session says. Needs
// `@livekit/rtc-node`, which is a peer dependency.

import { EventEmitter, once } from 'node:events';
import { createRequire } from 'node:module';
import { setTimeout as pause } from 'node:timers/promises';
import {
  type ConnectionQuality,
  type ConnectionState,
  type DataPacketKind,
  DisconnectReason,
  EncryptionType,
  type LocalParticipant,
  type LocalTrack,
  type LocalTrackPublication,
  type Participant,
  type RemoteParticipant,
  type RemoteTrack,
  type RemoteTrackPublication,
  Room,
  RoomEvent,
  type RoomOptions,
  TrackKind,
  type TrackPublication,
  TrackPublishOptions,
  TrackSource,
} from '@livekit/rtc-node';
import { MatrixRTCError } from './errors.js';
import type { Session } from './session.js';
import type { MediaKey, Membership, SFUToken } from './types.js';

/** The SDK that calls are made with. */
export * as rtc from '@livekit/rtc-node';

// KeyProvider.setKey of rtc-node 1.1 sends no key, and FrameCryptor.setKeyIndex names no track: both
// requests are made here, through the bindings that it uses itself.
type Bindings = typeof import('@livekit/rtc-ffi-bindings');
const { FfiRequest, FfiResponse, KeyDerivationFunction, livekitFfiRequest } = createRequire(
  import.meta.resolve('@livekit/rtc-node'),
)('@livekit/rtc-ffi-bindings') as Bindings;

// The ring of rtc-node 1.1 has no place for index 255, and a frame that names a place beyond the ring
// ends the process. So what others encrypt with it is not heard until their next key, and our own is
// used from another place.
const RING = 255;
const BEYOND = -1; // a cryptor takes the key that was set last, and writes 255 into the frame

const LONGEST_PAUSE_MS = 30_000; // between attempts to connect
const TAKE_BACK_MS = 5_000; // at most, for our leave to be ours again
const MAX_UNHEARD = 4096; // events that wait for a listener, the latest

/** The events of all rooms of a call, with the arguments that `Room` gives them. */
export interface CallEvents {
  participantConnected: [participant: RemoteParticipant];
  participantDisconnected: [participant: RemoteParticipant];
  localTrackPublished: [publication: LocalTrackPublication, participant: LocalParticipant];
  localTrackUnpublished: [publication: LocalTrackPublication, participant: LocalParticipant];
  localTrackRepublished: [publication: LocalTrackPublication, previousSid: string, participant: LocalParticipant];
  localTrackSubscribed: [track: LocalTrack];
  trackPublished: [publication: RemoteTrackPublication, participant: RemoteParticipant];
  trackUnpublished: [publication: RemoteTrackPublication, participant: RemoteParticipant];
  trackSubscribed: [track: RemoteTrack, publication: RemoteTrackPublication, participant: RemoteParticipant];
  trackUnsubscribed: [track: RemoteTrack, publication: RemoteTrackPublication, participant: RemoteParticipant];
  trackSubscriptionFailed: [trackSid: string, participant: RemoteParticipant, reason?: string];
  trackMuted: [publication: TrackPublication, participant: Participant];
  trackUnmuted: [publication: TrackPublication, participant: Participant];
  activeSpeakersChanged: [speakers: Participant[]];
  participantEncryptionStatusChanged: [isEncrypted: boolean, participant: Participant];
  connectionQualityChanged: [quality: ConnectionQuality, participant: Participant];
  connectionStateChanged: [state: ConnectionState];
  dataReceived: [
    payload: Uint8Array,
    participant?: RemoteParticipant,
    kind?: DataPacketKind,
    topic?: string,
    encryptionType?: EncryptionType,
  ];
  disconnected: [reason: DisconnectReason];
  reconnecting: [];
  reconnected: [];
}

export interface ConnectOptions {
  /** Of every room; the encryption is set here. */
  room?: Partial<RoomOptions>;
  /** Absent: goes on trying. */
  timeoutMs?: number;
}

/**
 * Enters the SFUs of a session that was joined, and resolves when the one that we publish to is
 * entered (or when we are in the call, if we publish nowhere). What stands in the way is told by
 * the session's events `sfu_failed` and tried again. Rejects after `timeoutMs`, and when the
 * session leaves meanwhile.
 */
export async function connect(session: Session, options: ConnectOptions = {}): Promise<Call> {
  if (!session.info().joined) throw notNow('connect: the session is not joined');
  const call = new Call(session, options.room ?? {});
  let timer: ReturnType<typeof setTimeout> | undefined;
  try {
    await new Promise<void>((resolve, reject) => {
      call._entered.then(resolve);
      call.closed.then(() => {
        const why = call._trouble === undefined ? '' : `: ${call._trouble}`;
        reject(notNow(`connect: the session left before an SFU was entered${why}`));
      }, reject);
      if (options.timeoutMs !== undefined)
        timer = setTimeout(() => reject(notNow(`connect: no SFU entered in ${options.timeoutMs} ms`)), options.timeoutMs);
    });
    return call;
  } catch (e) {
    await call.close().catch(() => {}); // e is why it failed, then
    throw e;
  } finally {
    clearTimeout(timer);
  }
}

const notNow = (message: string): MatrixRTCError => new MatrixRTCError({ status: 'MRTC_ERR_INVALID_STATE', message });

/** Whether the session, or this SFU of it, is no longer there. */
const isOver = (e: unknown): boolean =>
  e instanceof MatrixRTCError &&
  ['MRTC_ERR_INVALID_STATE', 'MRTC_ERR_INVALID_HANDLE', 'MRTC_ERR_INVALID_ARGUMENT'].includes(e.status);

/**
 * The media of a session: one `Room` for each SFU of the call, kept connected. It emits the events of
 * all its rooms; what happens before the first listener is added waits for it. After an SFU was
 * lost, or when our media moves to another one, a new room takes the place of the old, with the same
 * tracks. In an encrypted call, tracks that are not encrypted are told by `trackSubscriptionFailed`,
 * and not heard. It ends when the session leaves or is closed, or by `close`, which does not leave.
 */
export class Call extends EventEmitter<CallEvents> {
  readonly session: Session;
  /**
   * Resolves when the call has ended and its rooms are left. Rejects when neither the session nor `close`
   * has ended it: `MRTC_ERR_CLIENT_FAILED`, or a bug.
   */
  readonly closed: Promise<void>;
  /** @internal */
  readonly _entered: Promise<void>;
  /** @internal */
  readonly _options: Partial<RoomOptions>;
  /** @internal */
  readonly _tracks = new Map<LocalTrack, TrackPublishOptions>();
  /** Of our membership, the last that was told. @internal */
  _trouble: string | undefined;
  /** Where a track is published: at one place at a time. @internal */
  readonly _carriers = new Map<LocalTrack, Visit>();
  readonly #visits = new Map<string, Visit>();
  readonly #leaving = new Set<Promise<void>>();
  readonly #failures: unknown[] = [];
  readonly #told: ReturnType<Session['events']>;
  #unheard: [string, unknown[]][] | undefined = [];
  #enter: () => void = () => {};
  #isEntered = false;
  #closing = false;

  /** @internal */
  constructor(session: Session, options: Partial<RoomOptions>) {
    super();
    this.session = session;
    this._options = options;
    this._entered = new Promise((resolve) => (this.#enter = resolve));
    void this._entered.then(() => (this.#isEntered = true));
    this.once('newListener' as keyof CallEvents, () => setImmediate(() => this.#release()));
    this.#told = session.events();
    this.closed = this.#follow();
  }

  /** The room that we publish to, while it is connected. */
  get room(): Room | undefined {
    return this.rooms.get(this._publishUrl ?? '');
  }

  /** The rooms that are connected, by the URL of their authorisation service. */
  get rooms(): Map<string, Room> {
    return new Map([...this.#visits].flatMap(([url, visit]) => (visit.room ? [[url, visit.room]] : [])));
  }

  /** Those who carry the media of a member, in all rooms. */
  get remoteParticipants(): RemoteParticipant[] {
    const rooms = this.rooms;
    return this.#places().flatMap(([url, identity]) => rooms.get(url)?.remoteParticipants.get(identity) ?? []);
  }

  /** The participant that carries the media of a member; undefined while it is not there. */
  participantOf(member: Membership): RemoteParticipant | undefined {
    return this.remoteParticipants.find((p) => p.identity === member.sfu_identity);
  }

  /**
   * The member whose media a participant carries, ours for the local one; undefined for who is
   * connected to an SFU without publishing there, or is not in the call.
   */
  memberOf(participant: Participant): Membership | undefined {
    if (this.#closing) return undefined;
    const member = this.session.memberships.find((m) => m.sfu_identity === participant.identity);
    const carries = participant === this.room?.localParticipant || this.remoteParticipants.some((p) => p === participant);
    return carries ? member : undefined;
  }

  /**
   * Publishes a track where our media goes, now and after each reconnection or move. Without options
   * it is announced as a microphone or a camera. Where that fails, it is told by `sfu_failed` and
   * tried again, in a new room.
   */
  async publishTrack(track: LocalTrack, options?: TrackPublishOptions): Promise<void> {
    const source = track.kind === TrackKind.KIND_AUDIO ? TrackSource.SOURCE_MICROPHONE : TrackSource.SOURCE_CAMERA;
    this._tracks.set(track, options ?? new TrackPublishOptions({ source }));
    await this.#visits.get(this._publishUrl ?? '')?.published();
  }

  /** Ends the publication of a track. */
  async unpublishTrack(track: LocalTrack): Promise<void> {
    this._tracks.delete(track);
    await this.#visits.get(this._publishUrl ?? '')?.published();
  }

  /** Leaves the rooms. The session stays as it is. */
  async close(): Promise<void> {
    await this.#told.return?.();
    await this.closed;
  }

  /** @internal */
  get _publishUrl(): string | undefined {
    return this.#closing ? undefined : this.session.sfus.find((sfu) => sfu.publish)?.service_url;
  }

  /** Where the members publish, and under which identities. */
  #places(): [url: string, identity: string][] {
    if (this.#closing) return [];
    return this.session.sfus.flatMap((sfu) =>
      (sfu.members ?? []).map((m): [string, string] => [sfu.service_url, m.sfu_identity]),
    );
  }

  /** @internal */
  _forward(event: string, args: unknown[]): void {
    if (!this.#unheard) (this as EventEmitter).emit(event, ...args);
    else if (this.#unheard.push([event, args]) > MAX_UNHEARD) this.#unheard.shift();
  }

  #release(): void {
    const waiting = this.#unheard ?? [];
    this.#unheard = undefined;
    for (const [event, args] of waiting) this._forward(event, args);
  }

  async #follow(): Promise<void> {
    try {
      this._settle();
      loop: for await (const event of this.#told) {
        switch (event.event) {
          case 'encryption_key_changed':
            for (const visit of this.#visits.values()) visit.use(event);
            break;
          case 'leave_delegated_changed': {
            const visit = this.#visits.get(this._publishUrl ?? '');
            if (visit && event.delegated) visit.holdsLeave = true;
            break;
          }
          case 'sfus_changed':
          case 'status_changed':
            this._settle();
            break;
          case 'memberships_changed':
            if (!this.#isEntered) this._settle();
            break;
          case 'resync_required':
            this._settle();
            for (const visit of this.#visits.values()) visit.useAll();
            break;
          case 'membership_manager_error':
            this._trouble = event.message;
            break;
          case 'join_state_changed':
            if (!event.joined) break loop;
        }
      }
    } catch (e) {
      if (!isOver(e)) throw e; // else closed between an event and its handling
    } finally {
      this.#closing = true;
      for (const url of [...this.#visits.keys()]) this.#end(url);
      await Promise.all(this.#leaving);
    }
    if (this.#failures.length > 0) throw this.#failures[0];
  }

  /** Visits the SFUs of the call, and no others, and publishes where we should. @internal */
  _settle(): void {
    if (this.#closing) return;
    const sfus = this.session.sfus;
    // Why not to publish where we should is told.
    const wanted = new Set(sfus.filter((sfu) => sfu.trusted || sfu.publish).map((sfu) => sfu.service_url));
    for (const url of [...this.#visits.keys()]) if (!wanted.has(url)) this.#end(url);
    for (const url of wanted) if (this.#visits.get(url)?.over ?? true) this.#visit(url);
    this._wake();
    const info = this.session.info();
    const inCall = info.status === 'Connected' && info.own_membership !== null;
    if (this.room || (inCall && !sfus.some((sfu) => sfu.publish))) this.#enter();
  }

  /** @internal */
  _wake(): void {
    for (const visit of this.#visits.values()) visit.changed();
  }

  #visit(url: string): void {
    const visit = new Visit(this, url);
    this.#visits.set(url, visit);
    const left = visit.left
      .catch((e: unknown) => {
        this.#failures.push(e);
        void this.#told.return?.();
      })
      .finally(() => this.#leaving.delete(left));
    this.#leaving.add(left);
  }

  #end(url: string): void {
    this.#visits.get(url)?.end();
    this.#visits.delete(url);
  }
}

/** Our stay at one SFU: connected again and again until it is ended. */
class Visit {
  room: Room | undefined;
  over = false;
  holdsLeave = false; // the authorisation service there, or it did
  readonly left: Promise<void>;
  readonly #call: Call;
  readonly #url: string;
  readonly #controller = new AbortController();
  readonly #ended: Promise<never>;
  #leave: (why: string) => void = () => {};
  #changed = false; // what should be published here
  #wake: () => void = () => {};
  #waiting: (() => void)[] = []; // for it
  #encrypted = false;
  #own: MediaKey | undefined;
  #told: boolean | undefined; // whether we are connected

  constructor(call: Call, url: string) {
    this.#call = call;
    this.#url = url;
    const { signal } = this.#controller;
    this.#ended = new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));
    this.#ended.catch(() => {}); // where nobody waits
    this.left = this.#run().finally(() => (this.over = true));
  }

  get #isEnded(): boolean {
    return this.#controller.signal.aborted;
  }

  end(): void {
    this.#controller.abort();
    this.#leave('left');
  }

  changed(): void {
    this.#changed = true;
    this.#wake();
  }

  async #run(): Promise<void> {
    try {
      for (let failures = 0; !this.#isEnded; ) {
        const token = await this.#token();
        const began = performance.now();
        const error = await this.#stay(token).catch((e: unknown) => {
          if (isOver(e)) throw e;
          return e instanceof Error ? e.message : String(e);
        });
        this.#tell(false, this.#isEnded ? undefined : error);
        failures = performance.now() - began > LONGEST_PAUSE_MS ? 0 : failures + 1;
        const ms = Math.min(LONGEST_PAUSE_MS, 250 * 2 ** failures) * (0.5 + Math.random() / 2);
        await pause(ms, undefined, { signal: this.#controller.signal });
      }
    } catch (e) {
      if (!isOver(e) && !this.#isEnded) throw e;
    }
  }

  async #token(): Promise<SFUToken> {
    for (;;) {
      this.#controller.signal.throwIfAborted();
      try {
        return await Promise.race([this.#call.session.sfuToken(this.#url), this.#ended]);
      } catch (e) {
        // Otherwise it was told by the event `sfu_failed`, and is tried again by the session.
        if (!(e instanceof MatrixRTCError && e.status === 'MRTC_ERR_SFU')) throw e;
      }
    }
  }

  /** Enters a room, and resolves when it is gone, with the reason. */
  async #stay(token: SFUToken): Promise<string> {
    const call = this.#call;
    const room = new Room();
    const gone = new Promise<string>((resolve) => (this.#leave = resolve));
    this.#encrypted = call.session.info().keys_managed;
    for (const event of Object.values(RoomEvent)) {
      if (event === RoomEvent.TrackSubscribed) continue;
      room.on(event, (...args: unknown[]) => call._forward(event, args));
    }
    room.on(RoomEvent.TrackSubscribed, (track, publication, participant) => {
      // Whoever runs the SFU could say anything in anybody's name.
      if (this.#encrypted && (publication.encryptionType ?? EncryptionType.NONE) === EncryptionType.NONE) {
        publication.setSubscribed(false);
        const why = 'not encrypted, in an encrypted call';
        call._forward(RoomEvent.TrackSubscriptionFailed, [publication.sid, participant, why]);
      } else {
        call._forward(RoomEvent.TrackSubscribed, [track, publication, participant]);
      }
    });
    room.on(RoomEvent.Disconnected, (reason) => this.#leave(`disconnected: ${DisconnectReason[reason]}`));
    room.on(RoomEvent.LocalTrackPublished, () => this.#useIndex());
    room.on(RoomEvent.LocalTrackRepublished, () => this.#useIndex());
    const options = { autoSubscribe: true, dynacast: false, ...call._options };
    delete options.encryption;
    const connecting = room.connect(token.url, token.jwt, this.#encrypted ? { ...options, encryption: encryption() } : options);
    try {
      await Promise.race([connecting, this.#ended]);
    } catch (e) {
      // The SDK tries for half a minute, and cannot be told to stop.
      room.removeAllListeners();
      void connecting.then(() => room.disconnect()).catch(() => {});
      throw e;
    }
    try {
      this.room = room;
      this.useAll();
      this.#tell(true);
      call._settle();
      return await Promise.race([gone, this.#publish(room).then(() => gone)]);
    } finally {
      this.room = this.#own = undefined;
      this.#release();
      try {
        await this.#takeBackLeave(room);
        await room.disconnect();
      } finally {
        deafen(room);
        this.#putDown(...[...call._carriers].flatMap(([track, visit]) => (visit === this ? [track] : [])));
      }
    }
  }

  /** The service would send our leave once the SFU tells that we are gone. */
  async #takeBackLeave(room: Room): Promise<void> {
    const { session } = this.#call;
    try {
      if (!room.isConnected || !session.info().joined) return;
      this.#tell(false);
      const signal = AbortSignal.timeout(TAKE_BACK_MS);
      const isHere = this.holdsLeave || this.#call._publishUrl === this.#url;
      while (isHere && session.info().leave_delegated) await once(session, 'leave_delegated_changed', { signal });
    } catch (e) {
      if (!isOver(e) && !(e instanceof Error && e.name === 'AbortError')) throw e;
    } finally {
      this.holdsLeave = false;
    }
  }

  #tell(connected: boolean, error?: string): void {
    if (error === undefined && connected === this.#told) return;
    this.#told = connected;
    try {
      this.#call.session.sfuConnected(connected, this.#url, error === undefined ? undefined : { error });
    } catch (e) {
      if (!isOver(e)) throw e;
    }
  }

  /** Resolves when what should be published here is, and nothing else, or the room is gone. */
  async published(): Promise<void> {
    if (!this.room) return;
    const done = new Promise<void>((resolve) => this.#waiting.push(resolve));
    this.changed();
    await done;
  }

  async #publish(room: Room): Promise<void> {
    const here = new Map<LocalTrack, LocalTrackPublication>();
    for (let local; (local = this.room === room && room.localParticipant); ) {
      this.#changed = false;
      const wanted = new Map(this.#call._publishUrl === this.#url ? this.#call._tracks : []);
      for (const [track, { sid }] of here) {
        if (wanted.has(track)) continue;
        here.delete(track);
        if (sid !== undefined) await local.unpublishTrack(sid);
        this.#putDown(track);
      }
      // The SDK mixes up a track that comes here before it is gone elsewhere.
      const { _carriers: carriers } = this.#call;
      const isElsewhere = (track: LocalTrack): boolean => (carriers.get(track) ?? this) !== this;
      const waiting = [...wanted.keys()].some(isElsewhere);
      for (const [track, options] of wanted) {
        if (here.has(track) || isElsewhere(track)) continue;
        carriers.set(track, this);
        here.set(track, await local.publishTrack(track, options));
      }
      if (this.#changed) continue;
      if (!waiting) this.#release();
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
  }

  #putDown(...tracks: LocalTrack[]): void {
    for (const track of tracks) this.#call._carriers.delete(track);
    if (tracks.length > 0) this.#call._wake();
  }

  #release(): void {
    for (const done of this.#waiting.splice(0)) done();
  }

  // --- keys

  useAll(): void {
    for (const key of this.#call.session.encryptionKeys()) this.use(key);
  }

  use(key: MediaKey): void {
    const me = this.room?.localParticipant?.identity;
    if (me === undefined || (key.own && !key.in_use)) return;
    if (!this.#encrypted) {
      this.#leave('the call is encrypted now');
      return;
    }
    if (key.own) this.#own = key;
    else if (key.index < RING) this.#setKey(key.sfu_identity, key, key.index);
    if (!this.#own) return;
    const place = this.#own.index < RING ? this.#own.index : 0;
    // Messages are encrypted at the index that was set last: it must be our own.
    this.#setKey(me, this.#own, place);
    this.#useIndex();
    // A new track begins at index 0 until it is told otherwise: not with a key of the past.
    this.#setKey(me, this.#own, 0);
    this.#setKey(me, this.#own, place);
  }

  #setKey(participantIdentity: string, { key }: MediaKey, keyIndex: number): void {
    const value = { participantIdentity, key: Uint8Array.from(Buffer.from(key, 'base64')), keyIndex };
    this.#e2ee({ case: 'setKey', value });
  }

  /** Has our tracks encrypted with the key that is in use. */
  #useIndex(): void {
    const me = this.room?.localParticipant?.identity;
    if (!this.#own || me === undefined) return;
    const keyIndex = this.#own.index < RING ? this.#own.index : BEYOND;
    const found = this.#e2ee({ case: 'managerGetFrameCryptors', value: {} });
    if (found.case !== 'managerGetFrameCryptors') return;
    for (const { participantIdentity, trackSid } of found.value.frameCryptors) {
      if (participantIdentity !== me || trackSid === undefined) continue;
      this.#e2ee({ case: 'cryptorSetKeyIndex', value: { participantIdentity, trackSid, keyIndex } });
    }
  }

  #e2ee(message: E2eeMessage): E2eeAnswer {
    const roomHandle = (this.room as unknown as { ffiHandle: { handle: bigint } }).ffiHandle.handle;
    const request = new FfiRequest({ message: { case: 'e2ee', value: { roomHandle, message } } });
    const answer = FfiResponse.fromBinary(livekitFfiRequest(request.toBinary())).message;
    return answer.case === 'e2ee' ? answer.value.message : { case: undefined };
  }
}

/** Rooms that the SFU has ended go on hearing of all that happens, and are kept for that by the SDK. */
function deafen(room: Room): void {
  const sdk = (globalThis as { _ffiClientInstance?: EventEmitter })._ffiClientInstance;
  const { onFfiEvent } = room as unknown as { onFfiEvent?: () => void };
  if (onFfiEvent) sdk?.off('ffi_event', onFfiEvent);
}

type FfiMessage = NonNullable<ConstructorParameters<Bindings['FfiRequest']>[0]>['message'];
type E2eeMessage = NonNullable<Extract<FfiMessage, { case: 'e2ee' }>['value']['message']>;
type E2eeAnswer = Extract<InstanceType<Bindings['FfiResponse']>['message'], { case: 'e2ee' }>['value']['message'];

/**
 * As Element Call encrypts. The SDK's own defaults are understood by nobody in a Matrix call. Keys
 * are replaced, never ratcheted: trying to would put back an old key where a new one has just come.
 */
function encryption(): NonNullable<RoomOptions['encryption']> {
  const keyProviderOptions = {
    keyDerivationFunction: KeyDerivationFunction.HKDF,
    keyRingSize: RING,
    ratchetWindowSize: 0,
  };
  return { keyProviderOptions };
}
