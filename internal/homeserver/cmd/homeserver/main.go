// Command homeserver runs the in-memory homeserver of the tests by hand.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"libmatrixrtc/internal/homeserver"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "homeserver:", err)
		os.Exit(1)
	}
}

func run() error {
	listen := flag.String("listen", "127.0.0.1:0", "`address` to listen on")
	name := flag.String("name", "", "server `name`, the domain of its users")
	withAccount := flag.Bool("account", false, "make an account and an encrypted room, and print them for a shell")
	var transports []json.RawMessage
	flag.Func("sfu", "`URL` of the service that gives tokens of a LiveKit to offer for calls; may be repeated", func(url string) error {
		transport, err := json.Marshal(map[string]string{"type": "livekit", "livekit_service_url": url})
		transports = append(transports, transport)
		return err
	})
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), "A Matrix homeserver in memory. Its first line of output is its URL.\n\n")
		flag.PrintDefaults()
		fmt.Fprint(flag.CommandLine.Output(), "\n", homeserver.FaultsHelp)
	}
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("unknown argument %q", flag.Arg(0))
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	server := homeserver.New(homeserver.Options{ServerName: *name, RTCTransports: transports})
	front := &http.Server{Handler: server, ReadHeaderTimeout: 10 * time.Second}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, func() {
		server.Close()
		_ = front.Close()
	})
	url := fmt.Sprintf("http://%s", listener.Addr())
	fmt.Println(url)
	if *withAccount {
		go func() {
			line, err := account(url)
			if err != nil {
				line = "no account: " + err.Error()
			}
			fmt.Println(line)
		}()
	}
	if err := front.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
