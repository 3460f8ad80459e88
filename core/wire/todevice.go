package wire

import "maunium.net/go/mautrix/id"

// Device is one device of one user: whom an encrypted to-device message goes to.
type Device struct {
	UserID   id.UserID   `json:"user_id"`
	DeviceID id.DeviceID `json:"device_id"`
}

// Delivery says what became of a message to one device. Reason is empty where it was sent.
type Delivery struct {
	Device
	Reason string `json:"reason,omitempty"`
}
