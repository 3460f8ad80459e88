// The embedded homeserver (build/homeserver), or the one of MRTC_TEST_SYNAPSE_URL, with users and a
// room, for tests.

import { spawn, type ChildProcess } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

const BINARY = fileURLToPath(new URL('../../../../build/homeserver', import.meta.url));

export interface Account {
  user_id: string;
  access_token: string;
  device_id: string;
}

export class Homeserver {
  private constructor(
    readonly url: string,
    private readonly process?: ChildProcess,
  ) {}

  static async start(): Promise<Homeserver> {
    const running = process.env['MRTC_TEST_SYNAPSE_URL'];
    if (running) return new Homeserver(running);
    if (!existsSync(BINARY)) throw new Error(`${BINARY} is missing: run make homeserver`);
    const child = spawn(BINARY, ['-listen', '127.0.0.1:0'], { stdio: ['ignore', 'pipe', 'inherit'] });
    const lines = createInterface({ input: child.stdout });
    const [url] = (await once(lines, 'line', { signal: AbortSignal.timeout(60_000) })) as [string];
    return new Homeserver(url.trim(), child);
  }

  async stop(): Promise<void> {
    if (!this.process) return;
    const gone = once(this.process, 'exit');
    this.process.kill();
    await gone;
  }

  async request(method: string, path: string, body?: unknown, token?: string): Promise<Record<string, unknown>> {
    const response = await fetch(`${this.url}/_matrix/client/v3${path}`, {
      method,
      headers: token ? { Authorization: `Bearer ${token}` } : {},
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      signal: AbortSignal.timeout(60_000),
    });
    const answer = (await response.json()) as Record<string, unknown>;
    if (!response.ok) throw new Error(`${method} ${path}: ${response.status} ${JSON.stringify(answer)}`);
    return answer;
  }

  async register(): Promise<Account> {
    const username = `node-${randomUUID()}`;
    const auth = { type: 'm.login.dummy' };
    return (await this.request('POST', '/register', { username, password: 'secret', auth })) as unknown as Account;
  }

  /** A room that all of them are in and in which all may announce themselves. */
  room(...members: [Account, ...Account[]]): Promise<string> {
    return this.#room({}, members);
  }

  encryptedRoom(...members: [Account, ...Account[]]): Promise<string> {
    const content = { algorithm: 'm.megolm.v1.aes-sha2' };
    return this.#room({ initial_state: [{ type: 'm.room.encryption', state_key: '', content }] }, members);
  }

  async #room(more: object, [creator, ...others]: [Account, ...Account[]]): Promise<string> {
    const { room_id: roomId } = (await this.request(
      'POST',
      '/createRoom',
      {
        preset: 'public_chat',
        power_level_content_override: { events: { 'org.matrix.msc3401.call.member': 0 } },
        ...more,
      },
      creator.access_token,
    )) as { room_id: string };
    for (const other of others) {
      await this.request('POST', `/join/${encodeURIComponent(roomId)}`, {}, other.access_token);
    }
    return roomId;
  }
}
