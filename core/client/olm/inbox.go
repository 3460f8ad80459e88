package olm

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"maunium.net/go/mautrix/id"
)

// What comes from devices that have to be asked for waits here: server by server, so that a slow
// one holds up nobody else, and in order. To-device messages wait in the store as well, since the
// homeserver forgets them. A message of a device that its user has not listed makes no session, so
// that nobody can fill the store with devices that do not exist.
type inbox struct {
	mu      sync.Mutex
	servers map[string][]*incoming // a goroutine attends to each
	users   map[id.UserID]int      // how many of each wait
	places  map[string]int         // and of each server
	count   int
	backlog []*incoming // of an earlier life
}

const (
	waitingAtMost  = 2000
	waitingPerHome = 1000 // so that no server takes all places
	waitingPerUser = 100
	waitingBytes   = 16 << 10         // each
	patience       = 5 * time.Minute  // with a server that does not answer
	listedAtLast   = 20 * time.Second // what a user's server may take to tell ours of a new device
	askAgainFirst  = time.Second
	askAgainAtMost = 15 * time.Second
)

var (
	errTooMany = errors.New("too many messages of unknown devices wait")
	errTooLong = errors.New("it is too long for a message of an unknown device")
)

func (m *Machine) openInbox(ctx context.Context) error {
	if _, err := m.store.DB.Exec(ctx, "CREATE TABLE IF NOT EXISTS matrixrtc_waiting (id INTEGER PRIMARY KEY, event TEXT NOT NULL)"); err != nil {
		return err
	}
	rows, err := m.store.DB.Query(ctx, "SELECT id, event FROM matrixrtc_waiting ORDER BY id")
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var row int64
		var raw string
		if err := rows.Scan(&row, &raw); err != nil {
			return err
		}
		if ev, err := m.parse(json.RawMessage(raw)); err == nil {
			ev.row, ev.old = row, true
			m.inbox.backlog = append(m.inbox.backlog, ev)
		}
	}
	return rows.Err()
}

// keep stores what has to wait, for a next life. The lock is held.
func (m *Machine) keep(ctx context.Context, events []*incoming) error {
	for _, ev := range events {
		if ev.kind != byOlm || ev.old {
			continue
		}
		result, err := m.store.DB.Exec(ctx, "INSERT INTO matrixrtc_waiting (event) VALUES ($1)", string(ev.raw))
		if err != nil {
			return err
		}
		if ev.row, err = result.LastInsertId(); err != nil {
			return err
		}
	}
	return nil
}

// settle ends the waiting of a message in the store. The lock is held.
func (m *Machine) settle(ctx context.Context, ev *incoming) error {
	if ev.row == 0 {
		return nil
	}
	_, err := m.store.DB.Exec(ctx, "DELETE FROM matrixrtc_waiting WHERE id = $1", ev.row)
	return stored(err)
}

// sort says what can be decrypted now and what has to wait; there is a place for it then.
func (m *Machine) sort(facts SyncFacts) (now, later []*incoming) {
	b := &m.inbox
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, ev := range b.backlog {
		b.enter(ev)
	}
	later, b.backlog = b.backlog, nil
	place := func(ev *incoming, err error) {
		known := err == nil && (ev.kind == inClear || ev.kind == byOlm && m.lists.withKey(ev.Sender, ev.senderKey) != nil ||
			ev.kind == byMegolm && m.lists.of(ev.Sender) != nil)
		switch {
		case err != nil:
			m.drop(ev, err)
		case known && (ev.kind == inClear || b.users[ev.Sender] == 0):
			now = append(now, ev)
		case b.count >= waitingAtMost || b.places[ev.Sender.Homeserver()] >= waitingPerHome || b.users[ev.Sender] >= waitingPerUser:
			m.drop(ev, errTooMany)
		case len(ev.raw)+len(ev.room.Content) > waitingBytes:
			m.drop(ev, errTooLong)
		default:
			b.enter(ev)
			later = append(later, ev)
		}
	}
	for _, raw := range facts.ToDevice {
		place(m.parse(raw))
	}
	for _, e := range facts.Events {
		place(parseRoomEvent(e))
	}
	return now, later
}

// unsort takes back the places of what could not be stored: it comes again.
func (m *Machine) unsort(later []*incoming) {
	b := &m.inbox
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, ev := range later {
		b.leave(ev)
		if ev.old {
			b.backlog = append(b.backlog, ev)
		}
	}
}

func (b *inbox) enter(ev *incoming) {
	b.count++
	b.users[ev.Sender]++
	b.places[ev.Sender.Homeserver()]++
}

func (b *inbox) leave(ev *incoming) {
	b.count--
	if b.users[ev.Sender]--; b.users[ev.Sender] == 0 {
		delete(b.users, ev.Sender)
	}
	server := ev.Sender.Homeserver()
	if b.places[server]--; b.places[server] == 0 {
		delete(b.places, server)
	}
}

// await attends to what waits.
func (m *Machine) await(ctx context.Context, events []*incoming, deliver func([]Decrypted)) {
	b := &m.inbox
	var fresh []string
	b.mu.Lock()
	for _, ev := range events {
		ev.since = time.Now()
		server := ev.Sender.Homeserver()
		if b.servers[server] == nil {
			fresh = append(fresh, server)
		}
		b.servers[server] = append(b.servers[server], ev)
	}
	b.mu.Unlock()
	for _, server := range fresh {
		m.cfg.Go(func() { m.attend(ctx, server, deliver) })
	}
}

// attend asks a server for the devices of those who wait until it has answered for everybody, or
// for too long.
func (m *Machine) attend(ctx context.Context, server string, deliver func([]Decrypted)) {
	pause := askAgainFirst
	for {
		waiting, done := m.askFor(ctx, server)
		if ctx.Err() != nil {
			return
		}
		if len(done) == 0 && len(waiting) == 0 {
			return
		}
		var got outcome
		err := m.safely(ctx, func(ctx context.Context) (err error) {
			got, err = m.receive(ctx, done)
			return err
		})
		if err != nil {
			m.cfg.Log(3, "the store of encryption keys failed", map[string]any{"error": err.Error()})
		} else {
			if len(got.messages) > 0 {
				deliver(got.messages)
			}
			m.inbox.remove(server, done)
			m.mend(ctx, got.broken)
			if len(done) > 0 {
				pause = askAgainFirst
			}
			if len(waiting) == 0 {
				continue
			}
		}
		again := time.NewTimer(pause)
		select {
		case <-again.C:
		case <-ctx.Done():
			again.Stop()
			return
		}
		pause = min(2*pause, askAgainAtMost)
	}
}

// askFor makes devices of a server known, and says who has to wait on; done can be decrypted, or
// refused. Where nothing waits any more the server needs no attention.
func (m *Machine) askFor(ctx context.Context, server string) (waiting, done []*incoming) {
	b := &m.inbox
	b.mu.Lock()
	events := b.servers[server]
	if len(events) == 0 {
		delete(b.servers, server)
	}
	b.mu.Unlock()
	if len(events) == 0 {
		return nil, nil
	}
	var failure error
	err := m.at(server, m.heard).in(ctx, func() {
		var users []id.UserID
		asked := map[id.UserID]bool{}
		for _, ev := range events {
			if ev.kind == byOlm && m.lists.withKey(ev.Sender, ev.senderKey) == nil {
				m.lists.doubt(ev.Sender)
			}
			if !asked[ev.Sender] {
				asked[ev.Sender] = true
				users = append(users, ev.Sender)
			}
		}
		failure = m.query(ctx, users)
	})
	if err != nil {
		m.cfg.Log(1, "device lists could not be fetched", map[string]any{"error": err.Error()})
	}
	held := map[id.UserID]bool{}
	for _, ev := range events {
		if failure != nil {
			ev.since = time.Now() // our own homeserver is away: that is nobody's fault
		}
		age := time.Since(ev.since)
		unknown := m.lists.of(ev.Sender) == nil && age < patience ||
			ev.kind == byOlm && m.lists.withKey(ev.Sender, ev.senderKey) == nil && age < m.listedAtLast
		if held[ev.Sender] || unknown {
			held[ev.Sender] = true
			waiting = append(waiting, ev)
		} else {
			done = append(done, ev)
		}
	}
	return waiting, done
}

func (b *inbox) remove(server string, done []*incoming) {
	gone := make(map[*incoming]bool, len(done))
	for _, ev := range done {
		gone[ev] = true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	kept := make([]*incoming, 0, len(b.servers[server]))
	for _, ev := range b.servers[server] {
		if gone[ev] {
			b.leave(ev)
		} else {
			kept = append(kept, ev)
		}
	}
	b.servers[server] = kept
}
