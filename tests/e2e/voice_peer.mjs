// A Node bot for the voice tests: speaks a tone and says, a line of JSON a time, which tones it hears from whom. Its
// settings come as JSON on stdin, and it leaves when that ends.
import readline from 'node:readline';
import { Client } from '../../bindings/node/dist/src/index.js';
import { connect, rtc } from '../../bindings/node/dist/src/livekit.js';
import { RATE, WINDOW, hum, toneOf } from './tones.mjs';

const say = (told) => console.log(JSON.stringify(told));

async function listen(track, participant) {
  let samples = [];
  for await (const frame of new rtc.AudioStream(track, RATE, 1)) {
    samples.push(...frame.data);
    if (samples.length < WINDOW) continue;
    say({ from: call.memberOf(participant)?.user_id ?? null, tone: toneOf(samples.slice(0, WINDOW)) });
    samples = [];
  }
}

const input = readline.createInterface({ input: process.stdin });
const { value } = await input[Symbol.asyncIterator]().next();
const { config, room, tone, join } = JSON.parse(value);
const client = new Client(config);
client.start();
const session = client.session(room);
session.join(join);
const call = await connect(session, { timeoutMs: 180_000 });
call.on('trackSubscribed', (track, _publication, participant) => {
  void listen(track, participant);
});
call.on('trackSubscriptionFailed', (_sid, _participant, why) => say({ refused: why }));
const source = new rtc.AudioSource(RATE, 1);
await call.publishTrack(rtc.LocalAudioTrack.createAudioTrack('tone', source));
say({ in: true });
void hum(tone, source);

process.stdin.once('end', async () => {
  say({ left: await session.leave(60_000) });
  await call.closed;
  await client.close();
  process.exit(0);
});
