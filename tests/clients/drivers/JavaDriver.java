// java.net.http.WebSocket, driven by the lines of Driver in ../harness.py.

import java.io.BufferedReader;
import java.io.ByteArrayOutputStream;
import java.io.InputStreamReader;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.WebSocket;
import java.net.http.WebSocketHandshakeException;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HexFormat;
import java.util.List;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletionException;
import java.util.concurrent.CompletionStage;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;

public class JavaDriver {
    record Message(String kind, byte[] data) {}

    static class Messages implements WebSocket.Listener {
        final BlockingQueue<Message> all = new LinkedBlockingQueue<>();
        private final StringBuilder text = new StringBuilder();
        private final ByteArrayOutputStream binary = new ByteArrayOutputStream();

        Message next() throws Exception {
            Message found = all.poll(25, TimeUnit.SECONDS);
            if (found == null) throw new Exception("nothing within 25 s");
            return found;
        }

        @Override public CompletionStage<?> onText(WebSocket socket, CharSequence part, boolean last) {
            text.append(part);
            if (last) {
                all.add(new Message("text", text.toString().getBytes(StandardCharsets.UTF_8)));
                text.setLength(0);
            }
            socket.request(1);
            return null;
        }

        @Override public CompletionStage<?> onBinary(WebSocket socket, ByteBuffer part, boolean last) {
            byte[] bytes = new byte[part.remaining()];
            part.get(bytes);
            binary.writeBytes(bytes);
            if (last) {
                all.add(new Message("binary", binary.toByteArray()));
                binary.reset();
            }
            socket.request(1);
            return null;
        }

        @Override public CompletionStage<?> onPong(WebSocket socket, ByteBuffer data) {
            byte[] bytes = new byte[data.remaining()];
            data.get(bytes);
            all.add(new Message("pong", bytes));
            socket.request(1);
            return null;
        }

        @Override public CompletionStage<?> onClose(WebSocket socket, int code, String reason) {
            all.add(new Message("close", Integer.toString(code).getBytes()));
            return null;
        }

        @Override public void onError(WebSocket socket, Throwable error) {
            all.add(new Message("error", error.toString().getBytes()));
        }
    }

    static void run(HttpClient client, String[] fields, List<String> found) throws Exception {
        WebSocket.Builder builder = client.newWebSocketBuilder();
        for (String header : fields[5].split("\\|")) {
            int at = header.indexOf(": ");
            if (at > 0) builder.header(header.substring(0, at), header.substring(at + 2));
        }
        if (!fields[4].isEmpty()) {
            String[] protocols = fields[4].split(",");
            builder.subprotocols(protocols[0], Arrays.copyOfRange(protocols, 1, protocols.length));
        }
        Messages messages = new Messages();
        WebSocket socket = builder.buildAsync(URI.create(fields[1]), messages).join();
        found.add("open=1");
        found.add("protocol=" + socket.getSubprotocol());
        String action = fields[2];
        if (action.equals("echo")) {
            byte[] bytes = new byte[256];
            for (int i = 0; i < 256; i++) bytes[i] = (byte) i;
            List<String> same = new ArrayList<>();
            for (String kind : List.of("text", "large", "binary")) {
                String text = kind.equals("text") ? "grüße ☃" : "x".repeat(65536);
                boolean binary = kind.equals("binary");
                if (binary) socket.sendBinary(ByteBuffer.wrap(bytes), true).join();
                else socket.sendText(text, true).join();
                Message back = messages.next();
                byte[] sent = binary ? bytes : text.getBytes(StandardCharsets.UTF_8);
                if (back.kind().equals(binary ? "binary" : "text") && Arrays.equals(back.data(), sent)) same.add(kind);
            }
            found.add("echo=" + String.join(",", same));
            socket.sendPing(ByteBuffer.wrap(new byte[] {'p'})).join();
            Message pong = messages.next();
            found.add("pong=" + (pong.kind().equals("pong") && Arrays.equals(pong.data(), new byte[] {'p'}) ? 1 : 0));
        } else if (action.equals("receive")) {
            System.out.println("ready\t" + fields[0]);
            List<String> got = new ArrayList<>();
            for (int i = 0; i < Integer.parseInt(fields[3]); i++) {
                Message each = messages.next();
                got.add(each.kind() + ":" + HexFormat.of().formatHex(each.data()));
            }
            found.add("got=" + String.join(",", got));
        } else if (action.equals("say")) {
            System.out.println("ready\t" + fields[0]);
            String said = fields[3].startsWith("@") ? "x".repeat(Integer.parseInt(fields[3].substring(1))) : fields[3];
            if (!said.isEmpty()) socket.sendText(said, true).join();
        }
        if (!action.equals("say")) socket.sendClose(1000, "").join();
        Message last = messages.next();
        while (last.kind().equals("text") || last.kind().equals("binary")) last = messages.next();
        found.add(last.kind() + "=" + new String(last.data()));
        socket.abort();
    }

    public static void main(String[] arguments) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            String[] fields = Arrays.copyOf(line.split("\t", -1), 6);
            for (int i = 0; i < 6; i++) if (fields[i] == null) fields[i] = "";
            List<String> found = new ArrayList<>();
            try {
                run(client, fields, found);
            } catch (CompletionException error) {
                if (error.getCause() instanceof WebSocketHandshakeException rejected) {
                    found.add("status=" + rejected.getResponse().statusCode());
                } else {
                    found.add("error=" + error.getCause());
                }
            } catch (Exception error) {
                found.add("error=" + error);
            }
            System.out.println("result\t" + fields[0] + "\t" + String.join("\t", found).replace('\n', ' '));
        }
        System.exit(0);
    }
}
