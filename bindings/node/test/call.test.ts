// Two clients in one call on the embedded homeserver.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { after, before, test } from 'node:test';
import { Client, MatrixRTCError, type MatrixRTCEvent, type Session, type Transport } from '../src/index.js';
import { Homeserver, type Account } from './homeserver.js';
import { applied, checkEvent, checkShape } from './schema.js';

const SFU: Transport = { type: 'livekit', livekit_service_url: 'https://sfu.example.org' };
const PATIENCE = 60_000;

let server: Homeserver;
before(async () => {
  server = await Homeserver.start();
});
after(() => server.stop());

function connect(account: Account): Client {
  const { user_id, access_token, device_id } = account;
  const client = new Client({ homeserver_url: server.url, user_id, access_token, device_id });
  client.start();
  return client;
}

/** Resolves when the roster of a session is these users. The events that tell of it may still come. */
async function members(session: Session, ...accounts: Account[]): Promise<void> {
  const wanted = accounts.map((a) => a.user_id).sort();
  const signal = AbortSignal.timeout(PATIENCE);
  const seen = (): string[] => session.memberships.map((m) => m.user_id).sort();
  while (seen().join() !== wanted.join()) {
    await once(session, 'memberships_changed', { signal }).catch((cause: unknown) => {
      throw new Error(`saw ${seen().join()}, expected ${wanted.join()}`, { cause });
    });
  }
}

test('two clients see each other come, update and leave', { timeout: 4 * PATIENCE }, async () => {
  const [alice, bob] = [await server.register(), await server.register()];
  const roomId = await server.room(alice, bob);
  await using a = connect(alice);
  await using b = connect(bob);
  const [ours, theirs] = [a.session(roomId), b.session(roomId)];
  const events: MatrixRTCEvent[] = [];
  const reading = (async () => {
    for await (const event of ours) events.push(event);
  })();

  ours.join({ foci_preferred: [SFU], call_intent: 'audio', delayed_leave_delay_ms: 60_000 });
  await members(theirs, alice);
  theirs.join({ foci_preferred: [SFU] });
  await members(ours, alice, bob);
  await members(theirs, alice, bob);

  const [first] = theirs.memberships;
  assert.equal(first?.user_id, alice.user_id, 'the oldest comes first');
  assert.equal(first.intent, 'audio');
  assert.equal(first.active_transport?.livekit_service_url, SFU.livekit_service_url);

  const changes = theirs.events();
  ours.updateIntent('video');
  for await (const event of changes) {
    if (event.event !== 'memberships_changed' || event.updated.length === 0) continue;
    assert.equal(event.updated[0]?.after.intent, 'video');
    break;
  }

  assert.equal(ours.info().joined, true);
  checkShape('result.session_memberships', { memberships: ours.memberships });
  checkShape('result.session_info', ours.info());
  checkShape('result.client_info', a.info());
  checkShape('result.client_sessions', { sessions: a.sessions() });
  assert.deepEqual(
    a.sessions().map((c) => [c.room_id, c.member_count]),
    [[roomId, 2]],
  );
  assert.equal(typeof ours.debugSnapshot(), 'object');

  assert.equal(await ours.leave(PATIENCE), true);
  await members(theirs, bob);
  ours.close();
  await reading;

  const names = events.map((e) => e.event);
  assert.ok(names.includes('join_state_changed') && names.includes('left'), names.join());
  assert.deepEqual(
    events.map((e) => e.seq),
    events.map((e) => e.seq).sort((x, y) => x - y),
    'in order',
  );
  for (const event of events) {
    assert.equal(a.sessionOf(event), undefined, 'the session is closed');
    checkEvent(event);
  }
});

test('in an encrypted room two clients share their keys', { timeout: 4 * PATIENCE }, async () => {
  const [alice, bob] = [await server.register(), await server.register()];
  const roomId = await server.encryptedRoom(alice, bob);
  await using a = connect(alice);
  await using b = connect(bob);
  const [ours, theirs] = [a.session(roomId), b.session(roomId)];
  const holds = async (session: Session, of: Account, key: () => string | undefined): Promise<void> => {
    const events = session.events();
    for (;;) {
      const held = (session.participantKeys(of.user_id, of.device_id) ?? []).map((k) => k.fingerprint);
      const wanted = key();
      if (wanted !== undefined && held.includes(wanted)) return;
      const { done } = await events.next();
      assert.ok(!done, `no key of ${of.user_id}`);
    }
  };
  const own = (session: Session) => () => session.encryptionKeys().find((k) => k.own && k.in_use)?.fingerprint;
  ours.join({ foci_preferred: [SFU] });
  theirs.join({ foci_preferred: [SFU] });
  await holds(ours, bob, own(theirs));
  await holds(theirs, alice, own(ours));
  assert.equal(ours.info().keys_managed, true);
});

test('closing a client leaves the call', { timeout: 4 * PATIENCE }, async () => {
  const [alice, bob] = [await server.register(), await server.register()];
  const roomId = await server.room(alice, bob);
  const a = connect(alice);
  await using b = connect(bob);
  const theirs = b.session(roomId);
  a.session(roomId).join({ foci_preferred: [SFU] });
  await members(theirs, alice);
  const stream = a.events();
  await a.close();
  await members(theirs);
  let last: MatrixRTCEvent | undefined;
  for await (const event of stream) last = event;
  assert.equal(last?.event, 'sync_state');
  await a.close();
});

test('a token that the homeserver does not know is told, once', { timeout: PATIENCE }, async () => {
  await using client = new Client({ homeserver_url: server.url, access_token: 'wrong' });
  client.start();
  let event: MatrixRTCEvent | undefined;
  for await (event of client) if (event.event === 'sync_state' && event.state === 'error') break;
  assert.ok(event?.event === 'sync_state');
  assert.equal(event.error?.errcode, 'M_UNKNOWN_TOKEN');
  assert.equal(client.info().last_error?.status, 'MRTC_ERR_HOMESERVER');
  checkEvent(event);
});

test('leaving what was not joined is refused', async () => {
  const alice = await server.register();
  await using client = connect(alice);
  const session = client.session(await server.room(alice));
  await assert.rejects(session.leave(), (e) => e instanceof MatrixRTCError && e.status === 'MRTC_ERR_INVALID_STATE');
  assert.equal(session.listenerCount('left'), 0);
});

test('the schemas were applied', () => {
  for (const name of ['event.memberships_changed', 'event.left', 'event.sync_state', 'result.session_info']) {
    assert.ok(applied.has(name), `schema/${name}.json`);
  }
});
