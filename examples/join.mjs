// Joins the call of a room, prints who comes and goes, leaves at Ctrl-C or when input ends.
//
//   node examples/join.mjs URL TOKEN ROOM      (after npm ci && npm run build in bindings/node)
import { Client } from '../bindings/node/dist/src/index.js';

const [homeserver_url, access_token, room] = process.argv.slice(2);
if (!room) {
  console.error('usage: join.mjs HOMESERVER_URL ACCESS_TOKEN ROOM_ID');
  process.exit(2);
}
const client = new Client({ homeserver_url, access_token });
client.start();
const session = client.session(room);
session.on('memberships_changed', ({ joined, left, count }) => {
  for (const m of joined) console.log(`${m.user_id} on ${m.device_id} joined, ${count} in the call`);
  for (const { membership, reason } of left) console.log(`${membership.user_id} left: ${reason}`);
});
session.on('membership_manager_error', ({ message }) => console.error(message));
session.join({ foci_preferred: [{ type: 'livekit', livekit_service_url: 'https://sfu.example.org' }] });

const leave = async () => {
  console.log('leave sent:', await session.leave(5000));
  process.stdin.destroy();
  await client.close();
};
process.once('SIGINT', leave);
process.stdin.once('end', leave).resume();
