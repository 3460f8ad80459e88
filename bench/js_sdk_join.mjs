// What a join costs matrix-js-sdk: `js_sdk_join.mjs SIZE [keys]`, a member at a time from an empty
// call up to the size, on a room that is a stand-in for the sdk's; with keys it is in the call itself
// and hands its media key to each. Prints one JSON line.
import { EventEmitter } from "node:events";

// The sdk logs to the console, which would be measured too.
for (const level of ["log", "info", "debug", "trace", "warn", "error"]) console[level] = () => {};
const lib = new URL("../tests/e2e/jspeer/node_modules/matrix-js-sdk/lib/", import.meta.url);
const { logger } = await import(new URL("logger.js", lib));
logger.setLevel?.("silent");
const { MatrixRTCSession } = await import(new URL("matrixrtc/MatrixRTCSession.js", lib));

const size = Number(process.argv[2]);
const withKeys = process.argv[3] === "keys";
const roomId = "!room:example.test";
const type = "org.matrix.msc3401.call.member";
const start = Date.now() - size;

function member(i) {
    const user = `@user${i}:example.test`;
    const device = `DEV${i}`;
    const content = {
        application: "m.call",
        call_id: "",
        scope: "m.room",
        device_id: device,
        expires: 14400000,
        focus_active: { type: "livekit", focus_selection: "oldest_membership" },
        foci_preferred: [{ type: "livekit", livekit_service_url: "https://lk.example.test", livekit_alias: roomId }],
    };
    return {
        getId: () => `$m${i}`,
        getSender: () => user,
        getTs: () => start + i,
        getType: () => type,
        getContent: () => content,
        getStateKey: () => `_${user}_${device}_m.call`,
        getRoomId: () => roomId,
        isDecryptionFailure: () => false,
    };
}

const events = [];
const state = { getStateEvents: (t, key) => (t === type ? events : key === undefined ? [] : null) };
const room = Object.assign(new EventEmitter(), {
    roomId,
    getVersion: () => "11",
    hasMembershipState: () => true,
    getLiveTimeline: () => ({ getState: () => state }),
    _unstable_getStickyEvents: () => [],
});
let keysSent = 0;
const client = Object.assign(new EventEmitter(), {
    getUserId: () => "@me:example.test",
    getDeviceId: () => "ME",
    decryptEventIfNeeded: async () => {},
    sendEvent: async () => ({ event_id: "$e" }),
    sendStateEvent: async () => ({ event_id: "$me" }),
    _unstable_sendDelayedStateEvent: async () => ({ delay_id: "d" }),
    _unstable_restartScheduledDelayedEvent: async () => ({}),
    _unstable_updateDelayedEvent: async () => ({}),
    _unstable_sendScheduledDelayedEvent: async () => ({}),
    _unstable_cancelScheduledDelayedEvent: async () => ({}),
    encryptAndSendToDevice: async (_type, devices) => void (keysSent += devices.length),
    cancelPendingEvent() {},
});

const session = new MatrixRTCSession(client, room, { application: "m.call", id: "ROOM" });
await session.initialMembershipCalculated;
if (withKeys) {
    session.joinRTCSession(
        { userId: "@me:example.test", deviceId: "ME", memberId: "@me:example.test:ME" },
        [{ type: "livekit", livekit_service_url: "https://lk.example.test" }],
        undefined,
        { manageMediaKeys: true, keyRotationGracePeriodMs: 1e9, useKeyDelay: 0 }, // the key stays young
    );
}
let told = 0;
session.on("memberships_changed", () => told++);
const before = process.cpuUsage();
for (let i = 0; i < size; i++) {
    events.push(member(i));
    await session._onRTCSessionMemberUpdate();
}
if (withKeys) for (let i = 0; i < 100 && keysSent < size; i++) await new Promise(setImmediate);
const { user, system } = process.cpuUsage(before);
if (withKeys && keysSent !== size) {
    process.stderr.write(`${keysSent} keys were sent, expected ${size}\n`);
    process.exit(1);
}
if (session.memberships.length !== size || told !== size) {
    process.stderr.write(`${session.memberships.length} of ${size} members are there, ${told} changes were told\n`);
    process.exit(1);
}
process.stdout.write(JSON.stringify({ size, value: (user + system) / size }) + "\n");
process.exit(0);
