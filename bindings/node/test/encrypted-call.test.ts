// Media keys between clients that the library connects, by Olm, in an encrypted room.

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { Client, type ManagedConfig, type MediaKey, type Session, type Transport } from '../src/index.js';
import { Homeserver, type Account } from './homeserver.js';
import { checkEvent, checkShape } from './schema.js';

const SFU: Transport = { type: 'livekit', livekit_service_url: 'https://sfu.example.org' };
const PATIENCE = 60_000;

let server: Homeserver;
before(async () => {
  server = await Homeserver.start();
});
after(() => server.stop());

/** A client in the call. */
class Talker {
  readonly client: Client;
  readonly session: Session;

  constructor(
    readonly account: Account,
    roomId: string,
    options: Partial<ManagedConfig> = {},
  ) {
    const { user_id, access_token, device_id } = account;
    this.client = new Client({ homeserver_url: server.url, user_id, access_token, device_id, ...options });
    this.session = this.client.session(roomId);
    this.session.on('encryption_key_changed', checkEvent);
    this.client.start();
    this.session.join({ foci_preferred: [SFU], delayed_leave_delay_ms: 60_000 });
  }

  uses(): MediaKey | undefined {
    return this.session.encryptionKeys().find((k) => k.own && k.in_use);
  }

  /** Whether we hold the key that the other one encrypts with. */
  hears(other: Talker): boolean {
    const used = other.uses();
    const held = this.session.participantKeys(other.account.user_id, other.account.device_id) ?? [];
    return held.some((k) => k.index === used?.index && k.key === used.key);
  }
}

/** Resolves when something is so, which an event of these tells. */
async function until(what: string, talkers: Talker[], done: () => boolean): Promise<void> {
  let look = (): void => undefined;
  let late: NodeJS.Timeout | undefined;
  try {
    await new Promise<void>((resolve, reject) => {
      look = () => done() && resolve();
      late = setTimeout(() => reject(new Error(`not within ${PATIENCE} ms: ${what}`)), PATIENCE);
      for (const t of talkers) t.session.on('encryption_key_changed', look);
      look();
    });
  } finally {
    clearTimeout(late);
    for (const t of talkers) t.session.off('encryption_key_changed', look);
  }
}

function untilAllHear(...talkers: Talker[]): Promise<void> {
  return until('all hold the keys of the others', talkers, () =>
    talkers.every((a) => talkers.every((b) => a === b || a.hears(b))),
  );
}

/** Until all encrypt with keys that somebody who has gone never had. */
function untilChanged(had: MediaKey[], ...talkers: Talker[]): Promise<void> {
  const old = new Set(had.map((k) => k.key));
  return until('all have new keys', talkers, () =>
    talkers.every((t) => {
      const used = t.uses();
      return used !== undefined && !old.has(used.key);
    }),
  );
}

test('members hold the keys of each other', { timeout: 4 * PATIENCE }, async () => {
  const [a, b, c] = [await server.register(), await server.register(), await server.register()];
  const roomId = await server.encryptedRoom(a, b, c);
  const [alice, bob] = [new Talker(a, roomId), new Talker(b, roomId)];
  await using _alice = alice.client;
  await using _bob = bob.client;
  await untilAllHear(alice, bob);
  const used = alice.uses();
  assert.ok(used);
  const bytes = Buffer.from(used.key, 'base64');
  assert.equal(bytes.length, 16);
  assert.equal(used.fingerprint, createHash('sha256').update(bytes).digest('hex').slice(0, 8));
  checkShape('result.session_encryption_keys', { keys: bob.session.encryptionKeys() });

  const carol = new Talker(c, roomId);
  await untilAllHear(alice, bob, carol);
  const had = carol.session.encryptionKeys();
  await carol.client.close();
  await untilChanged(had, alice, bob);
  await untilAllHear(alice, bob);
});

test('a device that comes back with its store is keyed again', { timeout: 4 * PATIENCE }, async (t) => {
  const [a, b] = [await server.register(), await server.register()];
  const roomId = await server.encryptedRoom(a, b);
  const folder = mkdtempSync(join(tmpdir(), 'matrixrtc-'));
  t.after(() => rmSync(folder, { recursive: true }));
  const alice = new Talker(a, roomId);
  await using _alice = alice.client;
  for (let time = 0; time < 2; time++) {
    const bob = new Talker(b, roomId, { store_path: join(folder, 'bob.db'), pickle_key: 'a secret of the test' });
    await untilAllHear(alice, bob);
    const had = bob.session.encryptionKeys();
    await bob.client.close();
    await untilChanged(had, alice);
  }
});
