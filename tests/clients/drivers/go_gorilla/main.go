// gorilla/websocket, driven by the lines of Driver in ../../harness.py.
package main

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/gorilla/websocket"
)

type echo struct {
	kind string
	code int
	data []byte
}

func echoes() []echo {
	binary := make([]byte, 256)
	for i := range binary {
		binary[i] = byte(i)
	}
	return []echo{
		{"text", websocket.TextMessage, []byte("grüße ☃")},
		{"large", websocket.TextMessage, bytes.Repeat([]byte("x"), 65536)},
		{"binary", websocket.BinaryMessage, binary},
	}
}

func run(fields []string) (found []string) {
	name, url, action, argument := fields[0], fields[1], fields[2], fields[3]
	tell := func(key string, value any) { found = append(found, fmt.Sprintf("%s=%v", key, value)) }
	header := http.Header{}
	for _, line := range strings.Split(fields[5], "|") {
		if key, value, ok := strings.Cut(line, ": "); ok {
			header.Set(key, value)
		}
	}
	dialer := websocket.Dialer{HandshakeTimeout: 25 * time.Second}
	if fields[4] != "" {
		dialer.Subprotocols = strings.Split(fields[4], ",")
	}
	socket, answer, err := dialer.Dial(url, header)
	if err != nil {
		tell("open", 0)
		if answer != nil {
			tell("status", answer.StatusCode)
		}
		tell("error", err)
		return
	}
	defer socket.Close()
	tell("open", 1)
	tell("protocol", socket.Subprotocol())
	socket.SetReadDeadline(time.Now().Add(25 * time.Second))
	ponged := false
	socket.SetPongHandler(func(data string) error { ponged = data == "p"; return nil })

	switch action {
	case "echo":
		var same []string
		for _, each := range echoes() {
			socket.WriteMessage(each.code, each.data)
			code, data, err := socket.ReadMessage()
			if err == nil && code == each.code && bytes.Equal(data, each.data) {
				same = append(same, each.kind)
			}
		}
		tell("echo", strings.Join(same, ","))
		socket.WriteMessage(websocket.PingMessage, []byte("p"))
	case "receive":
		fmt.Printf("ready\t%s\n", name)
		wanted, _ := strconv.Atoi(argument)
		var got []string
		for range wanted {
			code, data, err := socket.ReadMessage()
			if err != nil {
				tell("error", err)
				break
			}
			kind := map[int]string{websocket.TextMessage: "text", websocket.BinaryMessage: "binary"}[code]
			got = append(got, kind+":"+hex.EncodeToString(data))
		}
		tell("got", strings.Join(got, ","))
	case "say":
		fmt.Printf("ready\t%s\n", name)
		if number, ok := strings.CutPrefix(argument, "@"); ok {
			size, _ := strconv.Atoi(number)
			argument = strings.Repeat("x", size)
		}
		if argument != "" {
			socket.WriteMessage(websocket.TextMessage, []byte(argument))
		}
	}
	if action != "say" {
		socket.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(1000, ""))
	}
	for {
		if _, _, err = socket.ReadMessage(); err != nil {
			break
		}
	}
	var closed *websocket.CloseError
	if errors.As(err, &closed) {
		tell("close", closed.Code)
	} else {
		tell("error", err)
	}
	if action == "echo" && ponged {
		tell("pong", 1)
	}
	return
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		fields := append(strings.Split(lines.Text(), "\t"), make([]string, 6)...)
		found := strings.ReplaceAll(strings.Join(run(fields), "\t"), "\n", " ")
		fmt.Printf("result\t%s\t%s\n", fields[0], found)
	}
}
