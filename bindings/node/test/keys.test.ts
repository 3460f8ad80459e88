// Media keys through the binding: a host-driven call whose host is the other side too.

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { afterEach, test } from 'node:test';
import { Client, MatrixRTCError, type EventName, type EventOf, type Feed, type JoinParams } from '../src/index.js';
import type { JSONObject, MatrixRTCEvent, Response, ToDeviceMessage } from '../src/index.js';
import { checkEvent, checkShape } from './schema.js';

const ROOM = '!r:x';
const KEYS = 'io.element.call.encryption_keys';
const CALL_MEMBER = 'org.matrix.msc3401.call.member';
const THEIRS = unpadded(Buffer.from('0123456789abcdef'));
const PATIENCE = { timeout: 60_000 };

const opened: Client[] = [];
afterEach(() => opened.splice(0).forEach((client) => client.free()));

function unpadded(bytes: Buffer): string {
  return bytes.toString('base64').replace(/=+$/, '');
}

function fingerprint(key: string): string {
  return createHash('sha256').update(Buffer.from(key, 'base64')).digest('hex').slice(0, 8);
}

/** We are @us:x; the test is the homeserver, the host's Olm, and everybody else. */
class Call {
  readonly client = new Client({ mode: 'host_driven', user_id: '@us:x', device_id: 'US', clock: 'manual' });
  readonly session = this.client.session(ROOM);
  readonly sent: [to: string, index: unknown][] = [];
  readonly unreachable = new Set<string>();
  readonly #events: MatrixRTCEvent[] = [];
  readonly #arriving = this.client.events();
  #boot = 0;

  constructor(settings: Partial<JoinParams> = {}) {
    opened.push(this.client);
    this.seconds(0);
    const events = [
      this.state('m.room.create', '@us:x', '', { room_version: '10' }),
      this.state('m.room.member', '@us:x', '@us:x', { membership: 'join' }),
      this.state('m.room.encryption', '@us:x', '', { algorithm: 'm.megolm.v1.aes-sha2' }),
    ];
    this.feed({ state: { room_id: ROOM, events, complete: true } });
    const params = { foci_preferred: [], ...settings };
    checkShape('argument.session_join', params);
    this.session.join(params);
  }

  get now(): number {
    return 1_700_000_000_000 + this.#boot;
  }

  seconds(seconds: number): void {
    this.#boot += seconds * 1000;
    this.client.advance({ boot_ms: this.#boot, wall_ts: this.now });
  }

  state(type: string, sender: string, state_key: string, content: JSONObject): object {
    this.#boot += 1;
    return { type, sender, state_key, content, event_id: `$${this.#boot}`, origin_server_ts: this.now };
  }

  feed(received: Feed): void {
    checkShape('argument.client_feed', received);
    this.client.feed(received);
  }

  respond(response: Response): void {
    checkShape('argument.client_respond', response);
    this.client.respond(response);
  }

  comes(user: string): void {
    const events = [
      this.state('m.room.member', user, user, { membership: 'join' }),
      this.state(CALL_MEMBER, user, `_${user}_THEM_m.call`, {
        application: 'm.call',
        call_id: '',
        device_id: 'THEM',
        focus_active: { type: 'livekit', focus_selection: 'multi_sfu' },
        foci_preferred: [],
      }),
    ];
    this.feed({ state: { room_id: ROOM, events } });
  }

  goes(user: string): void {
    this.feed({ state: { room_id: ROOM, events: [this.state(CALL_MEMBER, user, `_${user}_THEM_m.call`, {})] } });
  }

  /** A key of theirs arrives, as the host has decrypted it. */
  keyFrom(user: string, index: number, facts: Partial<ToDeviceMessage> = {}): void {
    const content = {
      keys: { index, key: THEIRS },
      member: { id: `${user}:THEM`, claimed_device_id: 'THEM' },
      room_id: ROOM,
      session: { application: 'm.call', call_id: '', scope: 'm.room' },
      sent_ts: this.now,
    };
    this.feed({ to_device: [{ type: KEYS, content, sender: user, sender_device: 'THEM', encrypted: true, ...facts }] });
  }

  /** The next event of this name; those before it, requests too, are dealt with. */
  async next<K extends EventName>(name: K): Promise<EventOf<K>> {
    for (;;) {
      const { value } = await this.#arriving.next();
      assert.ok(value, `the client ended before ${name}`);
      checkEvent(value);
      this.#events.push(value);
      if (value.event === 'request') this.#answer(value);
      if (value.event === name) return value as EventOf<K>;
    }
  }

  async until(done: () => boolean): Promise<void> {
    while (!done()) await this.next('request');
  }

  #answer(request: EventOf<'request'>): void {
    const { id } = request;
    if (request.kind === 'encrypt_and_send_to_device') {
      const [first, ...rest] = request.recipients.map((device) => {
        if (this.unreachable.has(device.user_id)) return { ...device, reason: 'no_one_time_key' };
        this.sent.push([device.user_id, (request.content['keys'] as JSONObject)['index']]);
        return device;
      });
      assert.ok(first);
      this.respond({ id, deliveries: [first], more: true });
      this.respond({ id, deliveries: rest });
      return;
    }
    const answers: { [kind: string]: JSONObject } = {
      list_delayed: { delayed_events: [] },
      schedule_delayed: { delay_id: 'd' },
      get_capabilities: { capabilities: {} },
    };
    this.respond({ id, status: 200, body: answers[request.kind] ?? { event_id: '$own' } });
  }
}

test('the keys of a call', PATIENCE, async () => {
  const call = new Call();
  const own = await call.next('encryption_key_changed');
  assert.deepEqual([own.user_id, own.device_id, own.index, own.own, own.in_use], ['@us:x', 'US', 0, true, true]);
  assert.equal(Buffer.from(own.key, 'base64').length, 16);
  assert.equal(own.fingerprint, fingerprint(own.key));
  assert.equal(call.session.participantKeys('@them:x', 'THEM'), null);

  call.comes('@them:x');
  await call.until(() => call.sent.length === 1);
  assert.deepEqual(call.sent, [['@them:x', 0]]);
  call.keyFrom('@them:x', 7);
  const theirs = await call.next('encryption_key_changed');
  assert.deepEqual(call.session.participantKeys('@them:x', 'THEM'), [
    {
      user_id: '@them:x',
      device_id: 'THEM',
      member_id: '@them:x:THEM',
      sfu_identity: '@them:x:THEM',
      index: 7,
      key: THEIRS,
      own: false,
      in_use: true,
      fingerprint: fingerprint(THEIRS),
    },
  ]);
  const keys = call.session.encryptionKeys();
  assert.deepEqual(
    keys.map((k) => [k.own, k.fingerprint]),
    [
      [true, own.fingerprint],
      [false, theirs.fingerprint],
    ],
  );
  checkShape('result.session_encryption_keys', { keys });
  call.session.reemitEncryptionKeys();
  assert.equal((await call.next('encryption_key_changed')).key, own.key);
  assert.equal((await call.next('encryption_key_changed')).key, THEIRS);
  const { statistics, keys_managed } = call.session.info();
  assert.deepEqual([keys_managed, statistics['keys_sent'], statistics['keys_received']], [true, 1, 1]);
});

test('a leaver makes a new key that comes into use later', PATIENCE, async () => {
  const call = new Call({ use_key_delay_ms: 2000 });
  call.comes('@them:x');
  call.comes('@others:x');
  await call.until(() => call.sent.length === 2);
  call.goes('@them:x');
  await call.until(() => call.sent.length === 3);
  assert.deepEqual(call.sent[2], ['@others:x', 1]);
  const inUse = (): boolean[] => call.session.encryptionKeys().map((k) => k.in_use);
  assert.deepEqual(inUse(), [true, false]);
  call.seconds(2);
  assert.deepEqual(inUse(), [false, true]);
});

test('a device that cannot be reached, and a member without a key', PATIENCE, async () => {
  const call = new Call({ key_missing_after_ms: 3000 });
  call.unreachable.add('@them:x');
  call.comes('@them:x');
  const told = await call.next('encryption_key_undelivered');
  assert.deepEqual([told.user_id, told.index, told.reason, told.delivered], ['@them:x', 0, 'no_one_time_key', false]);
  call.unreachable.clear();
  call.seconds(60);
  assert.equal((await call.next('encryption_key_missing')).missing, true);
  assert.equal((await call.next('encryption_key_undelivered')).delivered, true);
  call.keyFrom('@them:x', 0);
  assert.equal((await call.next('encryption_key_missing')).missing, false);
});

test('rotation stops at the limit', PATIENCE, async () => {
  const call = new Call({ key_rotation_participant_limit: 1 });
  call.comes('@them:x');
  assert.equal((await call.next('key_rotation_suppressed_changed')).suppressed, true);
  assert.equal(call.session.info().key_rotation_suppressed, true);
});

test('keys that are not taken in, and why', PATIENCE, () => {
  const call = new Call({ require_cross_signed: true });
  call.comes('@them:x');
  call.keyFrom('@them:x', 0, { encrypted: false });
  call.keyFrom('@them:x', 0);
  assert.equal(call.session.participantKeys('@them:x', 'THEM'), null);
  const { refused } = call.session.debugSnapshot()['keys'] as { refused: { [reason: string]: number } };
  assert.equal(refused['came in clear'], 1);
  assert.equal(Object.keys(refused).length, 2);
  call.keyFrom('@them:x', 0, { cross_signed: true });
  assert.equal(call.session.participantKeys('@them:x', 'THEM')?.length, 1);
});

test('keys by room event', PATIENCE, async () => {
  const call = new Call({ key_transport: 'room_event' });
  call.comes('@them:x');
  let request = await call.next('request');
  while (request.kind !== 'encrypt_and_send_event') request = await call.next('request');
  assert.equal(request.type, KEYS);
  const event = (index: number): object => ({
    type: KEYS,
    sender: '@them:x',
    event_id: `$k${index}`,
    origin_server_ts: call.now,
    content: { keys: [{ index, key: THEIRS }], device_id: 'THEM', call_id: '', sent_ts: call.now },
  });
  call.feed({ timeline: { room_id: ROOM, events: [event(1)] } });
  call.session.onCallEncryption(event(2));
  call.session.onCallEncryption({ type: KEYS, content: { keys: 'none' } });
  assert.deepEqual(
    call.session.participantKeys('@them:x', 'THEM')?.map((k) => k.index),
    [1, 2],
  );
});

test('keys: misuse', () => {
  const { client, session } = new Call();
  assert.throws(() => session.participantKeys(1 as never, 'D'), /^TypeError: user_id: expected a string, got number$/);
  assert.throws(() => client.respond({ id: 4711, deliveries: [] }), MatrixRTCError);
  assert.throws(() => client.feed({ to_device: [{ type: KEYS } as never] }), MatrixRTCError);
  session.close();
  assert.throws(() => session.encryptionKeys(), MatrixRTCError);
});
