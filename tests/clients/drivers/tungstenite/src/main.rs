//! tokio-tungstenite, driven by the lines of `Driver` in `../../harness.py`.

use std::io::{BufRead, stdin};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn echoes() -> [(&'static str, Message); 3] {
    [
        ("text", Message::text("grüße ☃")),
        ("large", Message::text("x".repeat(65536))),
        ("binary", Message::binary((0..=255).collect::<Vec<u8>>())),
    ]
}

async fn run(fields: &[&str], found: &mut Vec<(&'static str, String)>) -> Result<(), Error> {
    let [name, url, action, argument, protocols, headers] = fields else { return Ok(()) };
    let mut request = url.into_client_request()?;
    let all = request.headers_mut();
    if !protocols.is_empty() {
        let offer = protocols.replace(',', ", ");
        all.insert("Sec-WebSocket-Protocol", HeaderValue::from_str(&offer).expect("a header"));
    }
    for (key, value) in headers.split('|').filter_map(|line| line.split_once(": ")) {
        all.insert(
            HeaderName::from_bytes(key.as_bytes()).expect("a name"),
            HeaderValue::from_str(value).expect("a header"),
        );
    }
    let (mut socket, answer) = connect_async(request).await?;
    found.push(("open", "1".into()));
    let protocol = answer.headers().get("Sec-WebSocket-Protocol");
    found.push(("protocol", protocol.map_or("", |value| value.to_str().unwrap_or("?")).into()));
    match *action {
        "echo" => {
            let mut same = Vec::new();
            for (kind, message) in echoes() {
                socket.send(message.clone()).await?;
                if socket.next().await.transpose()? == Some(message) {
                    same.push(kind);
                }
            }
            found.push(("echo", same.join(",")));
            socket.send(Message::Ping("p".into())).await?;
            let pong = socket.next().await.transpose()? == Some(Message::Pong("p".into()));
            found.push(("pong", u8::from(pong).to_string()));
        }
        "receive" => {
            println!("ready\t{name}");
            let wanted = argument.parse().unwrap_or(1);
            let mut got = Vec::new();
            while got.len() < wanted {
                match socket.next().await.transpose()? {
                    Some(Message::Text(text)) => got.push(format!("text:{}", hex(text.as_bytes()))),
                    Some(Message::Binary(data)) => got.push(format!("binary:{}", hex(&data))),
                    Some(_) => {}
                    None => break,
                }
            }
            found.push(("got", got.join(",")));
        }
        "say" => {
            println!("ready\t{name}");
            let said = match argument.strip_prefix('@') {
                Some(number) => "x".repeat(number.parse().unwrap_or(0)),
                None => argument.to_string(),
            };
            if !said.is_empty() {
                socket.send(Message::text(said)).await?;
            }
        }
        _ => {}
    }
    if *action != "say" {
        let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        socket.close(Some(normal)).await?;
    }
    while let Some(message) = socket.next().await {
        if let Message::Close(Some(frame)) = message? {
            found.push(("close", u16::from(frame.code).to_string()));
        }
    }
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    for line in stdin().lock().lines().map_while(Result::ok) {
        let mut fields: Vec<&str> = line.split('\t').collect();
        fields.resize(6, "");
        let mut found = Vec::new();
        match tokio::time::timeout(Duration::from_secs(25), run(&fields, &mut found)).await {
            Ok(Ok(())) => {}
            Ok(Err(Error::Http(answer))) => found.push(("status", answer.status().as_u16().to_string())),
            Ok(Err(error)) => found.push(("error", error.to_string())),
            Err(late) => found.push(("error", late.to_string())),
        }
        let told: Vec<String> = found.iter().map(|(key, value)| format!("{key}={value}")).collect();
        println!("result\t{}\t{}", fields[0], told.join("\t").replace('\n', " "));
    }
}
