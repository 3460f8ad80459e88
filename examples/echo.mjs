// Says back what each participant of a call says, a second later. Leaves when it is alone, at Ctrl-C
// or when input ends.
//
//   node examples/echo.mjs URL TOKEN ROOM      (after npm ci && npm run build in bindings/node)
import { Client } from '../bindings/node/dist/src/index.js'; // elsewhere: 'matrixrtc'
import { connect, rtc } from '../bindings/node/dist/src/livekit.js'; // elsewhere: 'matrixrtc/livekit'

const [homeserver_url, access_token, room] = process.argv.slice(2);
if (!room) {
  console.error('usage: echo.mjs HOMESERVER_URL ACCESS_TOKEN ROOM_ID');
  process.exit(2);
}
const RATE = 48000;
const DELAY = 100; // in frames of 10 ms

const client = new Client({ homeserver_url, access_token });
client.start();
const session = client.session(room);
session.join({ delegate_leave: true }); // to where the homeserver has its media
const call = await connect(session); // in an encrypted room: with the keys, from now on

call.on('trackSubscribed', async (heard, _publication, participant) => {
  if (heard.kind !== rtc.TrackKind.KIND_AUDIO) return;
  console.log('hearing', call.memberOf(participant)?.user_id);
  const source = new rtc.AudioSource(RATE, 1);
  const echo = rtc.LocalAudioTrack.createAudioTrack('echo', source);
  await call.publishTrack(echo);
  const waiting = [];
  for await (const frame of new rtc.AudioStream(heard, RATE, 1)) {
    waiting.push(frame);
    if (waiting.length > DELAY) await source.captureFrame(waiting.shift());
  }
  await call.unpublishTrack(echo); // its speaker is gone
});

const leave = async () => {
  process.stdin.destroy();
  console.log('leave sent:', await session.leave(5000));
  await call.closed;
  await client.close();
  await rtc.dispose();
};
process.once('SIGINT', leave);
process.stdin.once('end', leave).resume();
session.on('memberships_changed', ({ left }) => {
  if (left.length > 0 && session.memberships.length === 1) leave();
});
