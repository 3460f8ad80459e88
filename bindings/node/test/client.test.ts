// Without a homeserver: host-driven mode, errors, the emitter, and the life of the process.

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync } from 'node:fs';
import { afterEach, test } from 'node:test';
import { Client, MatrixRTCError, version, type EventOf, type JoinParams, type JSONObject } from '../src/index.js';

const ROOM = '!room:example.org';
const FOCI: JoinParams = { foci_preferred: [{ type: 'livekit', livekit_service_url: 'https://sfu.example.org' }] };

const opened: Client[] = [];
afterEach(() => opened.splice(0).forEach((client) => client.free()));

function hostDriven(clock: 'real' | 'manual' = 'real'): Client {
  const client = new Client({ mode: 'host_driven', user_id: '@us:example.org', device_id: 'DEVICE', clock });
  opened.push(client);
  return client;
}

function state(type: string, stateKey: string, sender: string, content: unknown): object {
  return {
    type,
    state_key: stateKey,
    sender,
    content,
    event_id: `$${type}${stateKey}`,
    origin_server_ts: Date.now(),
  };
}

function callMember(user: string): object {
  return state('org.matrix.msc3401.call.member', `_${user}_THEIRS_m.call`, user, {
    application: 'm.call',
    call_id: '',
    device_id: 'THEIRS',
    expires: 14_400_000,
    focus_active: { type: 'livekit', focus_selection: 'multi_sfu' },
    foci_preferred: FOCI.foci_preferred,
    scope: 'm.room',
  });
}

function feedRoom(client: Client, ...users: string[]): void {
  const create = state('m.room.create', '', '@us:example.org', { room_version: '10' });
  const joins = ['@us:example.org', ...users].map((u) => state('m.room.member', u, u, { membership: 'join' }));
  client.feed({ state: { room_id: ROOM, events: [create, ...joins, ...users.map(callMember)], complete: true } });
}

function refused(status: string, path?: string): (error: unknown) => boolean {
  return (error) => {
    assert.ok(error instanceof MatrixRTCError, String(error));
    assert.equal(error.status, status);
    assert.notEqual(error.message, '');
    if (path !== undefined) assert.equal(error.path, path);
    return true;
  };
}

test('the library says its version', () => {
  assert.match(version(), /^\d+\.\d+\.\d+/);
});

test('arguments that make no sense are refused by name', () => {
  const make = (config: unknown): Client => new Client(config as never);
  assert.throws(() => make({ homeserver_url: 'http://x', token: 1 }), refused('MRTC_ERR_INVALID_ARGUMENT', '/token'));
  assert.throws(() => make({ homeserver_url: 5 }), refused('MRTC_ERR_INVALID_ARGUMENT', '/homeserver_url'));
  for (const config of [undefined, null, [], 'text', () => 0, {}]) {
    assert.throws(() => make(config), refused('MRTC_ERR_INVALID_ARGUMENT'));
  }
  const client = hostDriven();
  assert.throws(() => client.session('room'), refused('MRTC_ERR_INVALID_ARGUMENT', '/room_id'));
  assert.throws(() => client.session(`${ROOM}\0`), refused('MRTC_ERR_INVALID_ARGUMENT'));
  assert.throws(() => client.session(undefined as never), refused('MRTC_ERR_INVALID_ARGUMENT'));
  assert.throws(() => client.session(7 as never), /^TypeError: room_id: expected a string, got number$/);
  assert.throws(() => client.session(ROOM, { aplication: 'm.call' } as never), refused('MRTC_ERR_INVALID_ARGUMENT', '/aplication'));
  const session = client.session(ROOM);
  assert.throws(
    () => session.join({ ...FOCI, delayed_leave_delay_ms: -1 }),
    refused('MRTC_ERR_INVALID_ARGUMENT', '/delayed_leave_delay_ms'),
  );
  assert.throws(() => client.respond({ id: 4711, status: 200 }), refused('MRTC_ERR_NOT_FOUND'));
  assert.throws(() => client.feed({} as never), refused('MRTC_ERR_INVALID_ARGUMENT'));
});

test('a closed session and a freed client answer errors, and closing twice is nothing', async () => {
  const client = hostDriven();
  const session = client.session(ROOM);
  session.close();
  session.close();
  assert.throws(() => session.info(), refused('MRTC_ERR_INVALID_HANDLE'));
  client.free();
  client.free();
  await client.close();
  assert.throws(() => client.info(), refused('MRTC_ERR_INVALID_HANDLE'));
  const { done } = await client.events().next();
  assert.equal(done, true);
});

test('members come as events, to the session and then to the client', async () => {
  const client = hostDriven();
  const session = client.session(ROOM);
  const order: string[] = [];
  session.on('memberships_changed', (e) => order.push(`session ${e.joined[0]?.user_id}`));
  client.on('memberships_changed', (e) => order.push(`client ${client.sessionOf(e) === session}`));
  const seen = once(client, 'memberships_changed', { signal: AbortSignal.timeout(60_000) });
  feedRoom(client, '@them:example.org');
  assert.deepEqual(order, [], 'never during a call');
  await seen;
  assert.deepEqual(order, ['session @them:example.org', 'client true']);
  assert.equal(session.memberships[0]?.sfu_identity, '@them:example.org:THEIRS');
  client.free();
});

test('the emitter is that of Node: order, duplicates, once, prepend, remove', async () => {
  const client = hostDriven();
  const session = client.session(ROOM);
  const calls: string[] = [];
  const twice = (): void => void calls.push('twice');
  session.on('memberships_changed', twice);
  session.on('memberships_changed', twice);
  session.once('memberships_changed', () => calls.push('once'));
  session.prependListener('memberships_changed', () => calls.push('first'));
  assert.equal(session.listenerCount('memberships_changed'), 4);
  const next = async (...users: string[]): Promise<void> => {
    const seen = once(client, 'memberships_changed', { signal: AbortSignal.timeout(60_000) });
    feedRoom(client, ...users);
    await seen;
  };
  await next('@a:example.org');
  session.off('memberships_changed', twice);
  await next('@a:example.org', '@b:example.org');
  assert.deepEqual(calls, ['first', 'twice', 'twice', 'once', 'first', 'twice']);
  session.removeAllListeners();
  assert.deepEqual(session.eventNames(), []);
  assert.equal(session.emit('rejoined', {} as EventOf<'rejoined'>), false);
  client.free();
});

test('readers that came at different times each get every event since', async () => {
  const client = hostDriven();
  const session = client.session(ROOM);
  const [one, two] = [session.events(), session.events()];
  feedRoom(client, '@a:example.org');
  for (const event of ['memberships_changed', 'sfus_changed']) {
    assert.equal((await one.next()).value?.event, event);
    assert.equal((await two.next()).value?.event, event);
  }
  const waiting = one.next();
  await two.return?.();
  client.free();
  assert.equal((await waiting).done, true);
  assert.equal((await two.next()).done, true);
});

test('host-driven: requests are handed out and take their answers', async () => {
  const client = hostDriven('manual');
  const boot = 1000;
  assert.equal(client.advance({ boot_ms: boot, wall_ts: Date.now() }), null);
  const session = client.session(ROOM);
  feedRoom(client);
  const methods: string[] = [];
  client.on('request', ({ id, kind, http }) => {
    methods.push(`${http?.method} ${kind}`);
    const answers: { [kind: string]: JSONObject } = {
      get_capabilities: { capabilities: {} },
      list_delayed: { delayed_events: [] },
      schedule_delayed: { delay_id: 'delay' },
      send_state: { event_id: '$ours' },
    };
    client.respond({ id, status: 200, body: answers[kind] ?? {} });
  });
  session.join(FOCI);
  const signal = AbortSignal.timeout(60_000);
  while (session.info().status !== 'Connected') await once(session, 'status_changed', { signal });
  assert.ok(methods.includes('PUT send_state'), methods.join());
  assert.equal(typeof client.advance({ boot_ms: boot + 1 }), 'number');
  client.free();
});

test('no descriptor is left behind', async () => {
  const count = (): number => readdirSync('/proc/self/fd').length;
  hostDriven().free();
  await new Promise(setImmediate);
  const before = count();
  for (let i = 0; i < 50; i++) hostDriven().free();
  await new Promise(setImmediate);
  await new Promise(setImmediate);
  assert.equal(count(), before);
});

function run(script: string): { code: number | null; out: string } {
  const index = new URL('../src/index.js', import.meta.url).href;
  const child = spawnSync(
    process.execPath,
    ['--input-type=module', '-e', `import { Client } from ${JSON.stringify(index)};\n${script}`],
    { encoding: 'utf8', timeout: 60_000 },
  );
  return { code: child.status, out: child.stdout + child.stderr };
}

const HOST = `new Client({ mode: 'host_driven', user_id: '@us:example.org', device_id: 'D' })`;

test('the process ends when nothing is open', () => {
  assert.deepEqual(run(`const c = ${HOST}; c.session('!r:x'); c.free(); process.stdout.write('end')`), { code: 0, out: 'end' });
  assert.deepEqual(run(`${HOST}; process.stdout.write('end')`), { code: 0, out: 'end' }, 'never started');
  assert.deepEqual(run(`const c = ${HOST}; c.session('!r:x'); c.unref()`), { code: 0, out: '' }, 'unref');
});

test('an open session keeps the process alive', () => {
  const { code, out } = run(`
    const c = ${HOST}; c.session('!r:x');
    setTimeout(() => { process.stdout.write('alive'); c.free(); }, 50).unref();`);
  assert.deepEqual({ code, out }, { code: 0, out: 'alive' });
});

test('a listener that throws is an uncaught exception, and the rest of the events still come', () => {
  const { code, out } = run(`
    const c = ${HOST}; const s = c.session('!r:x');
    process.on('uncaughtException', (e) => process.stdout.write(e.message + ' '));
    s.once('memberships_changed', () => { throw new Error('mine'); });
    c.on('memberships_changed', (e) => { process.stdout.write(e.event); c.free(); });
    const ev = (type, key, content) => ({ type, state_key: key, sender: '@u:x', content, event_id: '$' + type, origin_server_ts: Date.now() });
    c.feed({ state: { room_id: '!r:x', complete: true, events: [
      ev('m.room.create', '', { room_version: '10' }),
      ev('m.room.member', '@u:x', { membership: 'join' }),
      ev('org.matrix.msc3401.call.member', '_@u:x_D_m.call', { application: 'm.call', call_id: '', device_id: 'D',
        focus_active: { type: 'livekit', focus_selection: 'multi_sfu' }, foci_preferred: [], expires: 1e7 }),
    ] } });`);
  assert.match(out, /^(mine memberships_changed|memberships_changedmine )$/);
  assert.equal(code, 0);
});
