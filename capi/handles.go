package main

import (
	"sync"

	"libmatrixrtc/core/client"
)

// Handles are numbers below 2^53 with the kind, a generation and a slot, so that one that was
// freed is never mistaken for its successor.
//
//	kind (2 bits) | generation (23 bits) | slot (28 bits)
const (
	slotBits = 28
	genBits  = 23

	kindClient   = 1
	kindSession  = 2
	kindListener = 3
)

type handleTable struct {
	mu    sync.RWMutex
	slots []handleSlot
	free  []uint32
}

type handleSlot struct {
	gen    uint32
	kind   uint8 // 0: free
	object any
}

var handles handleTable

func (t *handleTable) add(kind uint8, object any) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	var i uint32
	if n := len(t.free); n > 0 {
		i = t.free[n-1]
		t.free = t.free[:n-1]
	} else {
		i = uint32(len(t.slots))
		t.slots = append(t.slots, handleSlot{})
	}
	s := &t.slots[i]
	s.gen++
	s.kind, s.object = kind, object
	return uint64(kind)<<(slotBits+genBits) | uint64(s.gen)<<slotBits | uint64(i)
}

func (t *handleTable) get(h uint64) any {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if s := t.at(h); s != nil {
		return s.object
	}
	return nil
}

// take removes a handle and answers what it was; nil the second time.
func (t *handleTable) take(h uint64) any {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.at(h)
	if s == nil {
		return nil
	}
	object := s.object
	s.kind, s.object = 0, nil
	if s.gen < 1<<genBits-1 { // else the slot's generations are used up: it is retired
		t.free = append(t.free, uint32(h&(1<<slotBits-1)))
	}
	return object
}

func (t *handleTable) at(h uint64) *handleSlot {
	i := h & (1<<slotBits - 1)
	if i >= uint64(len(t.slots)) {
		return nil
	}
	s := &t.slots[i]
	if s.kind == 0 || h != uint64(s.kind)<<(slotBits+genBits)|uint64(s.gen)<<slotBits|i {
		return nil
	}
	return s
}

func clientOf(h uint64) (*host, error) {
	if c, ok := handles.get(h).(*host); ok {
		return c, nil
	}
	return nil, staleHandle("client")
}

func sessionOf(h uint64) (*call, error) {
	if s, ok := handles.get(h).(*call); ok {
		return s, nil
	}
	return nil, staleHandle("session")
}

func staleHandle(kind string) error {
	return &client.Error{Status: client.ErrInvalidHandle, Message: "there is no such " + kind + ": it is closed, or never existed"}
}
