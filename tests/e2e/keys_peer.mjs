// A call on Node whose session is one of the test, for test_voice_keys_node.py: it is told keys, speaks and hears. Lines
// of JSON both ways; it ends when its input does.
import readline from 'node:readline';
import { connect, rtc } from '../../bindings/node/dist/src/livekit.js';
import { EventSource } from '../../bindings/node/dist/src/source.js';
import { RATE, WINDOW, hum, toneOf } from './tones.mjs';

const say = (told) => console.log(JSON.stringify(told));

/** As much of a session as a call needs: one SFU, where everybody publishes. */
class Session extends EventSource {
  keys = new Map();
  memberships = [];

  constructor({ url, jwt }) {
    super();
    this.token = { url, jwt };
    this.sfus = [{ service_url: 'https://lk.x', publish: true, trusted: true, members: [] }];
  }

  info = () => ({ joined: true, status: 'Connected', keys_managed: true, own_membership: null });
  encryptionKeys = () => [...this.keys.values()];
  sfuToken = async () => this.token;
  sfuConnected = (connected) => say({ connected, listeners: globalThis._ffiClientInstance.listenerCount('ffi_event') });

  tellKey(key) {
    this.keys.set(`${key.sfu_identity} ${key.index}`, key);
    this._deliver({ event: 'encryption_key_changed', ...key });
  }
}

async function listen(track) {
  let samples = [];
  for await (const frame of new rtc.AudioStream(track, RATE, 1)) {
    samples.push(...frame.data);
    if (samples.length < WINDOW) continue;
    say({ tone: toneOf(samples.slice(0, WINDOW)) });
    samples = [];
  }
}

const input = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const session = new Session(JSON.parse((await input.next()).value));
let call;
for await (const line of input) {
  const { key, enter, speak } = JSON.parse(line);
  if (key) session.tellKey(key);
  if (enter) {
    call = await connect(session, { timeoutMs: 180_000 });
    call.on('trackSubscribed', (track) => void listen(track));
    say({ in: true });
  }
  if (speak) {
    const source = new rtc.AudioSource(RATE, 1);
    await call.publishTrack(rtc.LocalAudioTrack.createAudioTrack('tone', source));
    void hum(speak, source);
  }
}
await call?.close();
process.exit(0);
