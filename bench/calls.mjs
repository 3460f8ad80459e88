// What calls and events cost Node's main thread, beside bare koffi: `calls.mjs LIBRARY LIBBARE`. Prints JSON lines.
const koffi = (await import(new URL("../bindings/node/node_modules/koffi/index.js", import.meta.url))).default;
const { Client } = await import(new URL("../bindings/node/dist/src/index.js", import.meta.url));

const [libraryPath, barePath] = process.argv.slice(2);
const CALLS = 200_000;
const READS = 10_000;
const EVENTS = 10_000;
const config = { mode: "host_driven", user_id: "@me:example.test", device_id: "ME" };

// The same arguments on both sides, so that the difference is the library's.
const COUNT = ["uint64_t", "const char *", "size_t *", "void *"];
const bare = koffi.load(barePath).func("bare_call", "int32_t", COUNT);
const lib = koffi.load(libraryPath);
const free = lib.func("void mrtc_free(void *p)");
const out = koffi.out(koffi.pointer(koffi.disposable("BenchText", koffi.types.str, free)));
const native = Object.fromEntries(
    Object.entries({
        mrtc_listener_count: COUNT,
        mrtc_client_new: ["const char *", "_Out_ uint64_t *", out],
        mrtc_session_open: ["uint64_t", "const char *", "const char *", "_Out_ uint64_t *", out],
        mrtc_session_info: ["uint64_t", out],
        mrtc_client_feed: ["uint64_t", "const char *", out],
        mrtc_client_next_event: ["uint64_t", "int64_t", out],
    }).map(([name, args]) => [name, lib.func(name, "int32_t", args)]),
);

// Nanoseconds of a call, in the best of five rounds: the others were disturbed.
function each(calls, f) {
    const rounds = [];
    for (let round = 0; round < 5; round++) {
        const before = process.hrtime.bigint();
        for (let i = 0; i < calls / 5; i++) f();
        rounds.push(Number(process.hrtime.bigint() - before) / (calls / 5));
    }
    return Math.min(...rounds);
}

const row = (name, size, value, peer_value) => console.log(JSON.stringify({ name, size, value, peer_value }));

function answer(name, ...args) {
    const text = [null];
    native[name](...args, text);
    return text[0] === null ? null : JSON.parse(text[0]);
}

// A sync in which a call begins in each of many rooms: one event for each.
function sync(round) {
    const sender = "@user:example.test";
    const common = { sender, origin_server_ts: Date.now() };
    const events = [
        { type: "m.room.member", state_key: sender, event_id: "$u", content: { membership: "join" }, ...common },
        {
            type: "org.matrix.msc3401.call.member",
            state_key: `_${sender}_DEV_m.call`,
            event_id: "$m",
            content: {
                application: "m.call",
                call_id: "",
                scope: "m.room",
                device_id: "DEV",
                expires: 14400000,
                focus_active: { type: "livekit", focus_selection: "oldest_membership" },
                foci_preferred: [{ type: "livekit", livekit_service_url: "https://lk.example.test" }],
            },
            ...common,
        },
    ];
    const rooms = {};
    for (let i = 0; i < EVENTS / 5; i++) rooms[`!r${round}x${i}:example.test`] = { state: { events } };
    return { next_batch: "s", rooms: { join: rooms } };
}

const handle = [0];
const sessionHandle = [0];
native.mrtc_client_new(JSON.stringify(config), handle, [null]);
native.mrtc_session_open(handle[0], "!room:example.test", null, sessionHandle, [null]);

const count = koffi.alloc("size_t", 1);
row(
    "Node: C call with a checked handle",
    1,
    each(CALLS, () => native.mrtc_listener_count(handle[0], null, count, null)),
    each(CALLS, () => bare(2, null, count, null)),
);

const client = new Client(config);
const session = client.session("!room:example.test");
row(
    "Node: session.info()",
    1,
    each(READS, () => session.info()),
    each(READS, () => answer("mrtc_session_info", sessionHandle[0])),
);

// The best of five rounds here too.
const ours = [];
const plain = [];
let first, taken, done;
client.on("session_started", () => {
    first ??= process.hrtime.bigint();
    if (++taken === EVENTS / 5) done(Number(process.hrtime.bigint() - first) / taken);
});
client.ref();
answer("mrtc_client_next_event", handle[0], 0);
for (let round = 0; round < 5; round++) {
    const received = sync(round);
    [first, taken] = [undefined, 0];
    const told = new Promise((resolve) => (done = resolve));
    client.feed({ sync: received });
    ours.push(await told);
    native.mrtc_client_feed(handle[0], JSON.stringify({ sync: received }), [null]);
    const before = process.hrtime.bigint();
    taken = 0;
    while (answer("mrtc_client_next_event", handle[0], 0) !== null) taken++;
    plain.push(Number(process.hrtime.bigint() - before) / taken);
}
row("Node: event taken", EVENTS, Math.min(...ours), Math.min(...plain));
process.exit(0);
