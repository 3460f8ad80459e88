// A matrix-js-sdk participant: commands come as JSON lines on stdin, answers and what the peer sees go
// out as JSON lines on stdout.
//
//   {"id":1,"command":"start","base_url":..,"user_id":..,"device_id":..,"access_token":..}
//   -> {"id":1,"result":{..}}  or  {"id":1,"error":".."}
//   -> {"event":"memberships","room_id":..,"memberships":[{"user_id","device_id","intent","created_ts"}]}
//   -> {"event":"key","room_id":..,"user_id":..,"device_id":..,"index":..,"key":..} with media keys
//   -> {"event":"to_device","type":..,"sender":..,"content":..}, decrypted
//   -> {"event":"room_key_event","sender":..,"content":..}, decrypted
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

const roomKeyType = "io.element.call.encryption_keys";
let client;
let secretStorageKey;
const sessions = new Map();

function session(roomId) {
    const found = sessions.get(roomId);
    if (!found) throw new Error(`watch ${roomId} first`);
    return found;
}

const commands = {
    async start({ base_url, user_id, device_id, access_token, encrypted }) {
        client = sdk.createClient({
            baseUrl: base_url,
            userId: user_id,
            deviceId: device_id,
            accessToken: access_token,
            cryptoCallbacks: {
                getSecretStorageKey: async ({ keys }) => [Object.keys(keys)[0], secretStorageKey],
                cacheSecretStorageKey: (_id, _info, key) => (secretStorageKey = key),
            },
        });
        if (encrypted) await client.initRustCrypto({ useIndexedDB: false });
        client.on("toDeviceEvent", (e) =>
            write({ event: "to_device", type: e.getType(), sender: e.getSender(), content: e.getContent() }),
        );
        client.on("Event.decrypted", (e) => {
            if (e.getType() === roomKeyType) write({ event: "room_key_event", sender: e.getSender(), content: e.getContent() });
        });
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
        s.on("encryption_key_changed", (key, index, member) =>
            write({
                event: "key",
                room_id,
                user_id: member.userId,
                device_id: member.deviceId,
                index,
                key: Buffer.from(key).toString("base64").replace(/=+$/, ""),
            }),
        );
        s.on("join_state_changed", (joined) => write({ event: "join_state", room_id, joined }));
        s.on("membership_manager_error", (e) => write({ event: "error", room_id, message: String(e) }));
        await s.initialMembershipCalculated;
        tell();
        return {};
    },
    async join({ room_id, transports, intent, settings, media_keys }) {
        session(room_id).joinRTCSession(
            {
                userId: client.getUserId(),
                deviceId: client.getDeviceId(),
                memberId: `${client.getUserId()}:${client.getDeviceId()}`,
            },
            transports,
            undefined,
            {
                manageMediaKeys: media_keys,
                useExperimentalToDeviceTransport: true,
                callIntent: intent,
                ...settings,
            },
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
    // An event in the room, encrypted as the room is.
    async send_event({ room_id, type, content }) {
        return await client.sendEvent(room_id, type, content);
    },
    // Sets up cross-signing and secret storage; the recovery key of that.
    async secure({ password }) {
        const crypto = client.getCrypto();
        const key = await crypto.createRecoveryKeyFromPassphrase();
        await crypto.bootstrapCrossSigning({
            authUploadDeviceSigningKeys: (makeRequest) =>
                makeRequest({
                    type: "m.login.password",
                    identifier: { type: "m.id.user", user: client.getUserId() },
                    password,
                }),
        });
        await crypto.bootstrapSecretStorage({ createSecretStorageKey: async () => key });
        return { recovery_key: key.encodedPrivateKey };
    },
    // How a device looks from here: does its owner vouch for it?
    async device_status({ user_id, device_id }) {
        const status = await client.getCrypto().getDeviceVerificationStatus(user_id, device_id);
        return { known: !!status, signed_by_owner: !!status?.signedByOwner };
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
