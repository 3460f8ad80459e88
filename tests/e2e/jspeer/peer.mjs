// A matrix-js-sdk participant driven by JSON lines on stdin; what it sees goes to stdout as JSON
// lines. Arguments: homeserver URL, user id, device id, access token, room id.
import { createInterface } from "node:readline";
import * as sdk from "matrix-js-sdk";
import { logger } from "matrix-js-sdk/lib/logger.js";

logger.setLevel?.("silent");
for (const quiet of ["log", "debug", "info", "warn", "error", "trace"]) console[quiet] = () => {};

const [baseUrl, userId, deviceId, accessToken, roomId] = process.argv.slice(2);
const say = (what) => process.stdout.write(JSON.stringify(what) + "\n");
const seen = (m) => ({ user: m.userId ?? m.sender, device: m.deviceId, intent: m.callIntent ?? null });

const client = sdk.createClient({ baseUrl, userId, deviceId, accessToken });
const prepared = new Promise((resolve) => client.on("sync", (state) => state === "PREPARED" && resolve()));
await client.startClient({ initialSyncLimit: 20 });
await prepared;

const room = client.getRoom(roomId);
const session = client.matrixRTC.getRoomSession(room);
const members = () => say({ event: "members", members: session.memberships.map(seen) });
session.on("memberships_changed", members);
session.on("membership_manager_error", (e) => say({ event: "error", message: String(e) }));
say({ event: "ready" });
members();

const transport = { type: "livekit", livekit_service_url: "https://js.example", livekit_alias: roomId };
const commands = {
  join: () =>
    session.joinRTCSession({ userId, deviceId, memberId: `${userId}:${deviceId}` }, [transport], undefined, {
      manageMediaKeys: false,
    }),
  leave: async () => say({ event: "left", sent: await session.leaveRoomSession(5000) }),
  members,
  exit: () => process.exit(0),
};
for await (const line of createInterface({ input: process.stdin })) await commands[line.trim()]?.();
process.exit(0);
