// Command session measures what a join costs core/session: one member comes at a time, with the event
// that says it is in the room, from an empty call up to the sizes that are given. It prints a JSON line for each size.
package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"syscall"
	"time"

	"libmatrixrtc/core/session"
	"libmatrixrtc/core/wire"

	"maunium.net/go/mautrix/id"
)

const (
	room       = id.RoomID("!room:example.test")
	startTS    = 1_700_000_000_000
	leastJoins = 50_000 // small calls are filled again and again, to be measurable
)

func main() {
	for _, arg := range os.Args[1:] {
		size, err := strconv.Atoi(arg)
		if err != nil {
			fmt.Fprintln(os.Stderr, "usage: session SIZE...")
			os.Exit(2)
		}
		rounds := max(1, leastJoins/size)
		var spent time.Duration
		for range rounds {
			d, err := fill(size)
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			spent += d
		}
		us := float64(spent.Microseconds()) / float64(rounds*size)
		if err := json.NewEncoder(os.Stdout).Encode(map[string]any{"size": size, "value": us}); err != nil {
			os.Exit(1)
		}
	}
}

// fill brings size members into a call and answers the CPU time of their joins.
func fill(size int) (time.Duration, error) {
	now := session.Time{Boot: time.Hour, Wall: startTS}
	set := session.NewSet(session.SetConfig{UserID: "@me:example.test", DeviceID: "ME", Rand: rand.New(rand.NewPCG(1, 2))})
	joins := make([][]wire.Event, size)
	for i := range size {
		user := fmt.Sprintf("@user%d:example.test", i)
		joins[i] = []wire.Event{{
			Type: "m.room.member", StateKey: user, Sender: id.UserID(user), EventID: id.EventID(fmt.Sprintf("$u%d", i)),
			OriginServerTS: startTS, Content: json.RawMessage(`{"membership":"join"}`),
		}, {
			Type: wire.TypeStateMember, StateKey: fmt.Sprintf("_%s_DEV%d_m.call", user, i), Sender: id.UserID(user),
			EventID: id.EventID(fmt.Sprintf("$m%d", i)), OriginServerTS: startTS + int64(i),
			Content: json.RawMessage(fmt.Sprintf(`{"application":"m.call","call_id":"","scope":"m.room","device_id":"DEV%d",`+
				`"expires":14400000,"focus_active":{"type":"livekit","focus_selection":"oldest_membership"},`+
				`"foci_preferred":[{"type":"livekit","livekit_service_url":"https://lk.example.test","livekit_alias":"!room:example.test"}]}`, i)),
		}}
	}
	now.Wall += int64(size)
	if err := set.Handle(now, session.RoomState{Room: room, Reset: true, Complete: true}); err != nil {
		return 0, err
	}
	opened, err := set.Open(now, room, session.OpenOptions{})
	if err != nil {
		return 0, err
	}
	set.Outputs()
	told := 0
	before := cpu()
	for i := range joins {
		if err := set.Handle(now, session.RoomState{Room: room, Events: joins[i]}); err != nil {
			return 0, err
		}
		for _, out := range set.Outputs() {
			if out.Event == nil {
				continue
			}
			if changed, ok := out.Event.Data.(session.MembershipsChanged); ok {
				told += len(changed.Joined)
			}
		}
	}
	spent := cpu() - before
	if n := len(set.Memberships(opened)); n != size || told != size {
		return 0, fmt.Errorf("%d members joined, %d are there and %d were told", size, n, told)
	}
	return spent, nil
}

// cpu is the CPU time of this process, collection of garbage included.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
