//! Every subscriber receives the messages of a channel in one order, and none is lost.

use std::collections::BTreeMap;
use std::thread;

use hydrant::settings::Config;

use crate::support::{Client, STRATEGIES, TestServer, config, publish};

#[test]
fn all_shards_see_one_order_of_several_publishers() {
    const PUBLISHERS: usize = 4;
    const EACH: usize = 60;
    for fanout in STRATEGIES {
        let server = TestServer::start(Config { fanout, shards: 4.try_into().unwrap(), ..config() });
        let mut clients: Vec<_> = (0..40).map(|_| server.client("/ws/room")).collect();
        let publishers: Vec<_> = (0..PUBLISHERS)
            .map(|publisher| {
                let address = server.address;
                thread::spawn(move || {
                    let publish = |number| {
                        let text = format!("{publisher}:{number}");
                        (publish(address, "room", text.as_bytes()).offset, text)
                    };
                    (0..EACH).map(publish).collect::<Vec<_>>()
                })
            })
            .collect();
        // A client that sends SAY is a publisher like any other.
        let mut sender = server.client("/ws?channel=unused&channel=room");
        let by_offset: BTreeMap<_, _> = publishers.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        assert_eq!(by_offset.len(), PUBLISHERS * EACH, "offsets are distinct");
        assert_eq!(
            by_offset.keys().next_back().unwrap() - by_offset.keys().next().unwrap() + 1,
            by_offset.len() as u64
        );
        sender.text(r#"{"event":"SAY","message":"the last"}"#);
        for client in &mut clients {
            let seen: Vec<_> = (0..by_offset.len()).map(|_| client.receive_text()).collect();
            assert!(seen.iter().eq(by_offset.values()), "{fanout:?}: the order of the offsets");
            assert!(client.receive_text().contains("the last"));
        }
    }
}

#[test]
fn nothing_is_lost_at_two_thousand_clients() {
    const CLIENTS: usize = 2000;
    const MESSAGES: usize = 40;
    for fanout in STRATEGIES {
        let server = TestServer::start(Config { fanout, ..config() });
        let mut clients: Vec<_> = (0..CLIENTS).map(|_| server.client("/ws")).collect();
        let [first, second] = [0, 1].map(|publisher| {
            let address = server.address;
            thread::spawn(move || {
                for number in 0..MESSAGES / 2 {
                    let published = publish(address, "all", format!("{publisher}:{number}").as_bytes());
                    assert_eq!(published.matched, CLIENTS as u64);
                }
            })
        });
        first.join().unwrap();
        second.join().unwrap();
        let receive = |client: &mut Client| (0..MESSAGES).map(|_| client.receive_text()).collect::<Vec<_>>();
        let seen = receive(&mut clients[0]);
        for publisher in 0..2 {
            let own: Vec<_> = seen.iter().filter(|text| text.starts_with(&format!("{publisher}:"))).collect();
            let sent: Vec<_> = (0..MESSAGES / 2).map(|number| format!("{publisher}:{number}")).collect();
            assert!(own.iter().copied().eq(&sent), "{fanout:?}: {own:?}");
        }
        for client in &mut clients[1..] {
            assert_eq!(receive(client), seen, "{fanout:?}");
        }
        let totals = server.stats_until(|report| report.pending == 0).totals;
        assert_eq!((totals.matched, totals.delivered), ((CLIENTS * MESSAGES) as u64, (CLIENTS * MESSAGES) as u64));
    }
}

#[test]
fn a_client_that_has_seen_the_101_misses_nothing() {
    let server = TestServer::start(Config { shards: 3.try_into().unwrap(), ..config() });
    for number in 0..200 {
        let room = format!("room-{number}");
        let mut client = server.client(&format!("/ws/{room}"));
        let published = server.publish(&room, room.as_bytes());
        assert_eq!((published.matched, published.delivered), (1, 1));
        assert_eq!(client.receive_text(), room);
    }
}

#[test]
fn disconnects_during_passes_disturb_no_other_client() {
    for fanout in STRATEGIES {
        let server = TestServer::start(Config { fanout, shards: 1.try_into().unwrap(), ..config() });
        let mut staying: Vec<_> = (0..300).map(|_| server.client("/ws/room")).collect();
        let address = server.address;
        let churn = thread::spawn(move || {
            for _ in 0..10 {
                let leaving: Vec<_> = (0..60).map(|_| Client::connect(address, "/ws/room")).collect();
                drop(leaving);
            }
        });
        let mut sent = Vec::new();
        while !churn.is_finished() || sent.len() < 50 {
            sent.push(format!("{}", sent.len()));
            server.publish("room", sent[sent.len() - 1].as_bytes());
        }
        churn.join().unwrap();
        for client in &mut staying {
            assert!(sent.iter().all(|text| *text == client.receive_text()), "{fanout:?}");
        }
        server.wait_for_connections(staying.len());
        server.stats_until(|report| report.pending == 0);
    }
}
