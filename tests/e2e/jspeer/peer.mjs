// A matrix-js-sdk participant: commands come as JSON lines on stdin, answers and what the peer sees go
// out as JSON lines on stdout.
//
//   {"id":1,"command":"start","base_url":..,"user_id":..,"device_id":..,"access_token":..}
//   -> {"id":1,"result":{..}}  or  {"id":1,"error":".."}
//   -> {"event":"memberships","room_id":..,"memberships":[{"user_id","device_id","intent","created_ts"}]}
import { createInterface } from "node:readline";

// The sdk logs to the console, and stdout is ours.
for (const level of ["log", "info", "debug", "trace"]) console[level] = () => {};
const sdk = await import("matrix-js-sdk");

const write = (line) => process.stdout.write(JSON.stringify(line) + "\n");
const describe = (session) =>
    session.memberships.map((m) => ({
        user_id: m.userId,
        device_id: m.deviceId,
        intent: m.callIntent ?? null,
        created_ts: m.createdTs(),
    }));

let client;
const sessions = new Map();

function session(roomId) {
    const found = sessions.get(roomId);
    if (!found) throw new Error(`watch ${roomId} first`);
    return found;
}

const commands = {
    async start({ base_url, user_id, device_id, access_token }) {
        client = sdk.createClient({ baseUrl: base_url, userId: user_id, deviceId: device_id, accessToken: access_token });
        const ready = new Promise((resolve) => client.once("sync", resolve));
        await client.startClient({ initialSyncLimit: 20 });
        return { state: await ready };
    },
    async join_room({ room_id }) {
        const here = () => client.getRoom(room_id)?.getMyMembership() === "join";
        const arrived = new Promise((resolve) => {
            const look = () => {
                if (!here()) return;
                client.off("Room.myMembership", look);
                client.off("sync", look);
                resolve();
            };
            client.on("Room.myMembership", look);
            client.on("sync", look);
        });
        await client.joinRoom(room_id);
        if (!here()) await arrived;
        const s = client.matrixRTC.getRoomSession(client.getRoom(room_id));
        sessions.set(room_id, s);
        const tell = () => write({ event: "memberships", room_id, memberships: describe(s) });
        s.on("memberships_changed", tell);
        s.on("join_state_changed", (joined) => write({ event: "join_state", room_id, joined }));
        s.on("membership_manager_error", (e) => write({ event: "error", room_id, message: String(e) }));
        await s.initialMembershipCalculated;
        tell();
        return {};
    },
    async join({ room_id, transports, intent, delay_ms }) {
        session(room_id).joinRTCSession(
            {
                userId: client.getUserId(),
                deviceId: client.getDeviceId(),
                memberId: `${client.getUserId()}:${client.getDeviceId()}`,
            },
            transports,
            undefined,
            { manageMediaKeys: false, callIntent: intent, delayedLeaveEventDelayMs: delay_ms },
        );
        return {};
    },
    async update_intent({ room_id, intent }) {
        await session(room_id).updateCallIntent(intent);
        return {};
    },
    async leave({ room_id, timeout_ms }) {
        return { left: await session(room_id).leaveRoomSession(timeout_ms) };
    },
    async memberships({ room_id }) {
        return { memberships: describe(session(room_id)) };
    },
};

for await (const line of createInterface({ input: process.stdin })) {
    const { id, command, ...rest } = JSON.parse(line);
    // Commands may overlap: one that waits must not hold up the next.
    Promise.resolve()
        .then(() => commands[command](rest))
        .then(
            (result) => write({ id, result }),
            (e) => write({ id, error: String(e?.stack ?? e) }),
        );
}
process.exit(0);
