// Command authservice runs an authorisation service for a LiveKit SFU. The first line that it prints
// is its URL; it ends with its standard input, or when it is told to.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"libmatrixrtc/internal/authservice"
)

func main() {
	cfg := authservice.Config{Homeservers: map[string]string{}}
	listen := flag.String("listen", "127.0.0.1:0", "address to listen on")
	flag.StringVar(&cfg.LiveKitURL, "livekit", "ws://127.0.0.1:7880", "websocket URL of the SFU")
	flag.StringVar(&cfg.Key, "key", "devkey", "API key of the SFU")
	flag.StringVar(&cfg.Secret, "secret", "secret", "API secret of the SFU")
	full := flag.String("full-access", "*", "homeservers whose users may create rooms, comma-separated, or *")
	withInput := flag.Bool("with-stdin", false, "end with the standard input, as a child of a test does")
	verbose := flag.Bool("verbose", false, "log to standard error")
	flag.Func("homeserver", "NAME=URL: where the API of a server is; may be repeated", func(v string) error {
		name, base, ok := strings.Cut(v, "=")
		if !ok {
			return errors.New("expected NAME=URL")
		}
		cfg.Homeservers[name] = strings.TrimRight(base, "/")
		return nil
	})
	flag.Parse()
	cfg.FullAccess = strings.Split(*full, ",")
	if *verbose {
		cfg.Log = log.Printf
	}
	l, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	service := authservice.New(cfg)
	fmt.Printf("http://%s\n", l.Addr())
	server := &http.Server{Handler: service, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
		if *withInput {
			go func() {
				_, _ = io.Copy(io.Discard, os.Stdin)
				stop <- syscall.SIGTERM
			}()
		}
		<-stop
		service.Close()
		_ = server.Close()
	}()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		log.Fatal(err)
	}
}
