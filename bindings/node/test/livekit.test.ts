// Entering the SFUs of a call, where that cannot be done. Media is tested end to end: tests/e2e/test_voice.py.

import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { dispose, type LocalAudioTrack, Room, RoomEvent } from '@livekit/rtc-node';
import { Client, MatrixRTCError, type Session } from '../src/index.js';
import { type Call, connect } from '../src/livekit.js';
import { EventSource } from '../src/source.js';
import type { EventOf } from '../src/types.js';

const ROOM = '!r:x';
after(dispose); // else it keeps the process

/** A session whose host answers nothing. */
function silent(): { client: Client; session: Session } {
  const client = new Client({ mode: 'host_driven', user_id: '@us:x', device_id: 'US' });
  const session = client.session(ROOM);
  const state = [
    ['m.room.create', '', { room_version: '10' }],
    ['m.room.member', '@us:x', { membership: 'join' }],
  ];
  const events = state.map(([type, state_key, content]) => {
    return { type, state_key, content, sender: '@us:x', event_id: `$${type}`, origin_server_ts: 1 };
  });
  client.feed({ state: { room_id: ROOM, events, complete: true } });
  return { client, session };
}

const invalidState = (message: RegExp) => ({ name: 'MatrixRTCError', status: 'MRTC_ERR_INVALID_STATE', message });
const elsewhere = { foci_preferred: [{ type: 'livekit', livekit_service_url: 'https://lk.x' }] };

test('a session that is not joined', async () => {
  const { client, session } = silent();
  await assert.rejects(connect(session), invalidState(/not joined/));
  await client.close();
});

test('an SFU that cannot be entered in time', async () => {
  const { client, session } = silent();
  session.join(elsewhere);
  await assert.rejects(connect(session, { timeoutMs: 10 }), invalidState(/no SFU entered in 10 ms/));
  assert.equal(session.info().joined, true, 'it stays joined');
  await client.close();
});

test('a session that ends before an SFU is entered', async () => {
  for (const end of [(s: Session) => s.leaveSoon(), (s: Session) => s.close()]) {
    const { client, session } = silent();
    session.join(elsewhere);
    const connecting = connect(session);
    end(session);
    await assert.rejects(connecting, invalidState(/left before/));
    await client.close();
  }
});

test('a session that cannot join: connect says why', async () => {
  const { client, session } = silent();
  const refused = { errcode: 'M_UNKNOWN_TOKEN', error: 'no such token' };
  client.on('request', ({ id }) => client.respond({ id, status: 401, body: refused }));
  session.join(elsewhere);
  await assert.rejects(connect(session), invalidState(/left before .*no such token/));
  await client.close();
});

const SERVICE = 'https://lk.x';

/** As much of a session as a call needs: one SFU, where we publish. */
class Played extends EventSource {
  connected: [connected: boolean, error: string | undefined][] = [];
  memberships = [];
  sfus = [{ service_url: SERVICE, publish: true, trusted: true, members: [] }];
  info = (): object => ({ joined: true, status: 'Connected', keys_managed: false, own_membership: null });
  encryptionKeys = () => [];
  sfuToken = async (_url: string): Promise<object> => ({ url: 'wss://sfu.x', jwt: 'e30.e30.x' });
  sfuConnected(connected: boolean, _url: string, said?: { error: string }): void {
    this.connected.push([connected, said?.error]);
  }
  enter = (options?: { timeoutMs: number }): Promise<Call> => connect(this as unknown as Session, options);
}

type Published = { publishTrack: () => Promise<object>; unpublishTrack: (sid: string) => Promise<void> };

/** Has the SDK make rooms of this kind; their local participants are those given, one after the other. */
function rooms(t: { after: (f: () => void) => void }, connecting: (room: Room) => Promise<void>): void {
  const { connect } = Room.prototype;
  t.after(() => (Room.prototype.connect = connect));
  Room.prototype.connect = function () {
    return connecting(this);
  };
}

const as = (local: Published) => async (room: Room) => void Object.assign(room, { localParticipant: local });
const soon = { timeout: 60_000 };
const never = new Promise<never>(() => {});
const track = {} as LocalAudioTrack;
const options = {} as NonNullable<Parameters<Call['publishTrack']>[1]>;

test('closed while the SDK connects: nobody waits for it, and what it still enters is left', soon, async (t) => {
  let entered: Room | undefined;
  let go = (): void => {};
  const going = new Promise<void>((resolve) => (go = resolve));
  rooms(t, async (room) => {
    entered = room;
    await going;
  });
  const session = new Played();
  await assert.rejects(session.enter({ timeoutMs: 100 }), invalidState(/no SFU entered/));
  assert.deepEqual(session.connected, [[false, undefined]]);
  assert.ok(entered);
  const left = new Promise<void>((resolve) => (entered!.disconnect = async () => resolve()));
  go();
  await left;
});

test('a room that goes while a track is published', soon, async (t) => {
  const made: Room[] = [];
  let asked = (): void => {};
  const asking = new Promise<void>((resolve) => (asked = resolve));
  let published = 0;
  const unpublishTrack = async () => {};
  rooms(t, async (room) => {
    made.push(room);
    const publishTrack = async () => {
      if (made.length === 1) asked();
      else published++;
      return made.length === 1 ? never : { sid: 'TR' };
    };
    await as({ publishTrack, unpublishTrack })(room);
  });
  const session = new Played();
  const call = await session.enter();
  const publishing = call.publishTrack(track, options);
  await asking;
  made[0]!.emit(RoomEvent.Disconnected, 0);
  await publishing;
  while (published === 0) await new Promise((resolve) => setTimeout(resolve, 20));
  await call.close();
  assert.deepEqual(session.connected.map(([connected]) => connected), [true, false, true, false]);
});

test('an SDK that fails to publish: told, and tried again in a new room', soon, async (t) => {
  let published = 0;
  const publishTrack = async () => {
    if (published++ === 0) throw new Error('no answer');
    return { sid: 'TR' };
  };
  rooms(t, as({ publishTrack, unpublishTrack: async () => {} }));
  const session = new Played();
  const call = await session.enter();
  await call.publishTrack(track, options);
  while (published < 2) await new Promise((resolve) => setTimeout(resolve, 20));
  assert.deepEqual(session.connected, [[true, undefined], [false, 'no answer'], [true, undefined]]);
  await call.close();
});

test('a track is withdrawn by the sid that it has by then', soon, async (t) => {
  const publication = { sid: 'TR_1' };
  const withdrawn: string[] = [];
  const unpublishTrack = async (sid: string) => void withdrawn.push(sid);
  rooms(t, as({ publishTrack: async () => publication, unpublishTrack }));
  const call = await new Played().enter();
  await call.publishTrack(track, options);
  publication.sid = 'TR_2'; // a full reconnection
  await call.unpublishTrack(track);
  assert.deepEqual(withdrawn, ['TR_2']);
  await call.close();
});

test('the leave that the service has is taken back before the SFU tells it that we are gone', soon, async (t) => {
  const session = new Played();
  const happened: string[] = [];
  let leave_delegated = true;
  session.info = () => ({ joined: true, status: 'Connected', keys_managed: false, own_membership: null, leave_delegated });
  session.sfuConnected = (connected) => {
    happened.push(`connected: ${connected}`);
    if (!connected) {
      setTimeout(() => {
        leave_delegated = false;
        happened.push('ours');
        session._deliver({ event: 'leave_delegated_changed', delegated: false, client: 1, seq: 1, ts: 1 });
      }, 50);
    }
  };
  rooms(t, async (room) => {
    Object.defineProperty(room, 'isConnected', { value: true });
    room.disconnect = async () => void happened.push('disconnected');
    await as({ publishTrack: () => never, unpublishTrack: () => never })(room);
  });
  const call = await session.enter();
  session._deliver({ event: 'leave_delegated_changed', delegated: true, client: 1, seq: 1, ts: 1 });
  await new Promise((resolve) => setImmediate(resolve));
  await call.close();
  assert.deepEqual(happened, ['connected: true', 'connected: false', 'ours', 'disconnected']);
});

test('a client that fails ends the call, and says so', soon, async (t) => {
  rooms(t, as({ publishTrack: () => never, unpublishTrack: () => never }));
  const failed = { name: 'MatrixRTCError', status: 'MRTC_ERR_CLIENT_FAILED' };
  const session = new Played();
  session.sfuToken = async () => {
    throw new MatrixRTCError({ status: 'MRTC_ERR_CLIENT_FAILED', message: 'a bug of the library' });
  };
  await assert.rejects(session.enter(), failed);
});

test('why not to publish where we should is told', soon, async () => {
  const client = new Client({ mode: 'host_driven', user_id: '@us:x', device_id: 'US', sfu_trust: 'homeserver' });
  const session = client.session(ROOM);
  const membership = {
    application: 'm.call',
    call_id: '',
    scope: 'm.room',
    device_id: 'A',
    expires: 14_400_000,
    focus_active: { type: 'livekit', focus_selection: 'oldest_membership' },
    foci_preferred: [{ type: 'livekit', livekit_service_url: SERVICE }],
  };
  const state: [string, string, string, object][] = [
    ['m.room.create', '', '@us:x', { room_version: '10' }],
    ['m.room.member', '@us:x', '@us:x', { membership: 'join' }],
    ['m.room.member', '@a:x', '@a:x', { membership: 'join' }],
    ['org.matrix.msc3401.call.member', '_@a:x_A_m.call', '@a:x', membership],
  ];
  const events = state.map(([type, state_key, sender, content], i) => {
    return { type, state_key, content, sender, event_id: `$${i}`, origin_server_ts: Date.now() };
  });
  client.feed({ state: { room_id: ROOM, events, complete: true } });
  const told = new Promise<EventOf<'sfu_failed'>>((resolve) => session.once('sfu_failed', resolve));
  session.join({ foci_preferred: [], foci_active: { focus_selection: 'oldest_membership' } });
  const connecting = assert.rejects(connect(session), invalidState(/left before/));
  const { service_url, reason } = await told;
  assert.deepEqual([service_url, reason], [SERVICE, 'untrusted']);
  session.close();
  await connecting;
  await client.close();
});
