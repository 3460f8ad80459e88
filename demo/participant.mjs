// The demo's Node participant: joins the call, prints what it sees as JSON lines, leaves when its
// input ends. Of media keys it prints fingerprints only.
//
//   participant.mjs HOMESERVER_URL ACCESS_TOKEN ROOM_ID JOIN_PARAMS
import { Client } from '../bindings/node/dist/src/index.js';

const [homeserver_url, access_token, room, params] = process.argv.slice(2);
const client = new Client({ homeserver_url, access_token });
const session = client.session(room);
const events = session.events(); // before the start: so who is there already is told as well
client.start();
session.join(JSON.parse(params));
process.stdin.resume().once('end', async () => {
  await session.leave(10_000);
  await client.close();
});
for await (const event of events) console.log(JSON.stringify({ ...event, key: undefined }));
