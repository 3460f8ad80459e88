// The voice demo's Node participant: records what it hears in the call, prints what it sees and how
// loud each note is as JSON lines, leaves when its input ends.
//
//   record.mjs HOMESERVER_URL ACCESS_TOKEN ROOM_ID JOIN_PARAMS NOTES FILE   (raw samples: 16 bits, 48 kHz, mono)
import { createWriteStream } from 'node:fs';
import { Client } from '../bindings/node/dist/src/index.js';
import { connect, rtc } from '../bindings/node/dist/src/livekit.js';

const RATE = 48000;
const WINDOW = RATE / 10;

const [homeserver_url, access_token, room, params, notes, file] = process.argv.slice(2);
const say = (event) => console.log(JSON.stringify({ ...event, key: undefined, jwt: undefined }));

/** How loud a note is in some samples, of 32767: one bin of a Fourier transform. */
function loudness(samples, note) {
  let [re, im] = [0, 0];
  samples.forEach((sample, i) => {
    re += sample * Math.cos((2 * Math.PI * note * i) / RATE);
    im += sample * Math.sin((2 * Math.PI * note * i) / RATE);
  });
  return (2 * Math.hypot(re, im)) / samples.length;
}

async function listen(track, out) {
  let window = [];
  for await (const frame of new rtc.AudioStream(track, RATE, 1)) {
    out.write(Buffer.from(frame.data.buffer, frame.data.byteOffset, frame.data.byteLength).subarray());
    window.push(...frame.data);
    if (window.length < WINDOW) continue;
    const levels = Object.fromEntries(notes.split(',').map((note) => [note, Math.round(loudness(window, Number(note)))]));
    say({ event: 'levels', levels });
    window = [];
  }
}

const client = new Client({ homeserver_url, access_token });
const session = client.session(room);
const events = session.events(); // before the start: so who is there already is told as well
client.start();
session.join(JSON.parse(params));
const out = createWriteStream(file);
process.stdin.resume().once('end', async () => {
  await session.leave(10_000);
  await new Promise((done) => out.end(done));
  await client.close();
  await rtc.dispose();
});
(async () => {
  const call = await connect(session);
  call.on('trackSubscribed', (track) => listen(track, out));
})();
for await (const event of events) say(event);
