// golang.org/x/net/websocket, which wants an Origin of its caller; the package's own example sends http://localhost/.
package main

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/websocket"
)

type message struct {
	binary bool
	data   []byte
}

var frames = websocket.Codec{
	Marshal: func(v any) ([]byte, byte, error) {
		sent := v.(message)
		if sent.binary {
			return sent.data, websocket.BinaryFrame, nil
		}
		return sent.data, websocket.TextFrame, nil
	},
	Unmarshal: func(data []byte, kind byte, v any) error {
		*v.(*message) = message{kind == websocket.BinaryFrame, append([]byte(nil), data...)}
		return nil
	},
}

func run(fields []string) (found []string) {
	name, url, action, argument := fields[0], fields[1], fields[2], fields[3]
	tell := func(key string, value any) { found = append(found, fmt.Sprintf("%s=%v", key, value)) }
	origin := "http://localhost/"
	for _, line := range strings.Split(fields[5], "|") {
		if value, ok := strings.CutPrefix(line, "Origin: "); ok {
			origin = value
		}
	}
	config, err := websocket.NewConfig(url, origin)
	if err != nil {
		tell("open", 0)
		tell("error", err)
		return
	}
	for _, line := range strings.Split(fields[5], "|") {
		if key, value, ok := strings.Cut(line, ": "); ok && key != "Origin" {
			config.Header.Set(key, value)
		}
	}
	if fields[4] != "" {
		config.Protocol = strings.Split(fields[4], ",")
	}
	socket, err := websocket.DialConfig(config)
	if err != nil {
		tell("open", 0)
		tell("error", err)
		return
	}
	defer socket.Close()
	tell("open", 1)
	// Without a subprotocol chosen, the package keeps the offer.
	tell("protocol", strings.Join(socket.Config().Protocol, ","))
	socket.SetDeadline(time.Now().Add(25 * time.Second))

	switch action {
	case "echo":
		binary := make([]byte, 256)
		for i := range binary {
			binary[i] = byte(i)
		}
		var same []string
		for _, each := range []struct {
			kind string
			sent message
		}{
			{"text", message{false, []byte("grüße ☃")}},
			{"large", message{false, bytes.Repeat([]byte("x"), 65536)}},
			{"binary", message{true, binary}},
		} {
			var back message
			frames.Send(socket, each.sent)
			if frames.Receive(socket, &back) == nil && back.binary == each.sent.binary && bytes.Equal(back.data, each.sent.data) {
				same = append(same, each.kind)
			}
		}
		tell("echo", strings.Join(same, ","))
	case "receive":
		fmt.Printf("ready\t%s\n", name)
		wanted, _ := strconv.Atoi(argument)
		var got []string
		for range wanted {
			var each message
			if err := frames.Receive(socket, &each); err != nil {
				tell("error", err)
				break
			}
			kind := "text:"
			if each.binary {
				kind = "binary:"
			}
			got = append(got, kind+hex.EncodeToString(each.data))
		}
		tell("got", strings.Join(got, ","))
	case "say":
		fmt.Printf("ready\t%s\n", name)
		if number, ok := strings.CutPrefix(argument, "@"); ok {
			size, _ := strconv.Atoi(number)
			argument = strings.Repeat("x", size)
		}
		if argument != "" {
			frames.Send(socket, message{false, []byte(argument)})
		}
		// The package has no way to read the code: its end is all that can be seen.
		var each message
		for err == nil {
			err = frames.Receive(socket, &each)
		}
		tell("ended", err)
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
