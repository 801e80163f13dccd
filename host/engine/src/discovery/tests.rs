//! Discovery against a name server on loopback and real files.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use simple_dns::rdata::{A, RData, SRV};
use simple_dns::{CLASS, Name, Packet, PacketFlag, RCODE, ResourceRecord};
use tokio::sync::broadcast;

use super::*;
use crate::config::Config;
use crate::event::Event;

/// A name server that answers what it is told to, to every question of that type.
#[derive(Default)]
struct Zone {
    /// Target, port, priority, weight.
    srv: Mutex<Vec<(&'static str, u16, u16, u16)>>,
    a: Mutex<Vec<[u8; 4]>>,
    ttl: AtomicU32,
    silent: AtomicBool,
    failing: AtomicBool,
    unknown: AtomicBool,
    /// Says over UDP that the answer is too long for it.
    truncating: AtomicBool,
    asked: AtomicU32,
    over_tcp: AtomicU32,
}

impl Zone {
    fn answer(&self, question: &[u8], tcp: bool) -> Option<Vec<u8>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.silent.load(Ordering::SeqCst) {
            return None;
        }
        let asked = Packet::parse(question).unwrap();
        let mut reply = Packet::new_reply(asked.id());
        let name = asked.questions[0].qname.clone();
        let ttl = self.ttl.load(Ordering::SeqCst);
        let mut add = |rdata| {
            let record = ResourceRecord::new(name.clone(), CLASS::IN, ttl, rdata);
            if asked.questions[0].qtype == record.rdata.type_code().into() {
                reply.answers.push(record);
            }
        };
        for (target, port, priority, weight) in self.srv.lock().unwrap().iter() {
            add(RData::SRV(SRV {
                priority: *priority,
                weight: *weight,
                port: *port,
                target: Name::new(target).unwrap(),
            }));
        }
        for address in self.a.lock().unwrap().iter() {
            add(RData::A(A {
                address: u32::from(Ipv4Addr::from(*address)),
            }));
        }
        if self.failing.load(Ordering::SeqCst) {
            *reply.rcode_mut() = RCODE::ServerFailure;
        }
        if self.unknown.load(Ordering::SeqCst) {
            reply.answers.clear();
            *reply.rcode_mut() = RCODE::NameError;
        }
        if self.truncating.load(Ordering::SeqCst) && !tcp {
            reply.answers.clear();
            reply.set_flags(PacketFlag::TRUNCATION);
        }
        reply.questions = asked.questions.clone();
        Some(reply.build_bytes_vec().unwrap())
    }

    /// Answers on loopback, over UDP and TCP, for as long as the process lives.
    fn serve() -> (Arc<Self>, SocketAddr) {
        let zone = Arc::new(Self::default());
        zone.ttl.store(1, Ordering::SeqCst);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let socket = UdpSocket::bind(address).unwrap();
        let (udp, tcp) = (zone.clone(), zone.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                // What is no answer must not be taken for one.
                let _ = socket.send_to(&buffer[..length], from);
                if let Some(answer) = udp.answer(&buffer[..length], false) {
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                tcp.over_tcp.fetch_add(1, Ordering::SeqCst);
                let mut length = [0; 2];
                stream.read_exact(&mut length).unwrap();
                let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
                stream.read_exact(&mut question).unwrap();
                let answer = tcp.answer(&question, true).unwrap();
                let length = u16::try_from(answer.len()).unwrap();
                stream.write_all(&length.to_be_bytes()).unwrap();
                stream.write_all(&answer).unwrap();
            }
        });
        (zone, address)
    }
}

/// What the sink was told last, and what the subscribers were.
struct Seen {
    discovery: Discovery,
    told: watch::Receiver<Targets>,
    events: broadcast::Receiver<Arc<Event>>,
}

impl Seen {
    /// Follows the sources of a configuration; `refused` is a name the sink does not want.
    fn start(text: &str, folder: &Path, refused: &'static str) -> Self {
        let loaded = Config::parse(text, &folder.join("backstop.toml"), &|_| None);
        assert!(!loaded.has_errors(), "{:?}", loaded.diagnostics);
        let engine = Engine::builder().build().unwrap();
        let events = engine.subscribe();
        let (tell, told) = watch::channel(Targets::default());
        let sink = move |targets: &Targets| {
            if targets.names().any(|name| name == refused) {
                return Err(format!("{refused:?} is refused"));
            }
            tell.send_replace(targets.clone());
            Ok(())
        };
        let fixed = Targets {
            services: loaded.config.services,
            models: loaded.config.models,
        };
        let sources = &loaded.config.discoveries;
        let random = crate::random::seeded(1);
        let discovery = Discovery::spawn(engine, fixed, sources, Arc::new(sink), random);
        Self {
            discovery,
            told,
            events,
        }
    }

    /// Waits until the sink was told exactly these names.
    async fn names(&mut self, names: &[&str]) {
        let is = |targets: &Targets| targets.names().collect::<Vec<_>>() == names;
        let waited = tokio::time::timeout(Duration::from_secs(20), self.told.wait_for(is)).await;
        assert!(
            waited.is_ok(),
            "{names:?}, not {:?}",
            self.discovery.targets()
        );
    }

    /// Waits for the next refusal.
    async fn refusal(&mut self) -> String {
        let waited = async {
            loop {
                if let EventKind::ConfigRejected { reason, .. } =
                    &self.events.recv().await.unwrap().what
                {
                    return reason.clone();
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), waited)
            .await
            .expect("a refusal")
    }

    fn now(&self) -> Vec<String> {
        let targets = self.discovery.targets();
        targets.names().map(str::to_owned).collect()
    }
}

fn dns(server: SocketAddr, rest: &str) -> String {
    format!("[[discovery]]\nname = 'd'\nnameservers = ['{server}']\ngroup = 'g'\n{rest}\n")
}

#[tokio::test]
async fn srv_records_become_services_and_follow_every_change() {
    let (zone, server) = Zone::serve();
    *zone.srv.lock().unwrap() = vec![("b.example", 2, 20, 0), ("a.example", 1, 10, 7)];
    *zone.a.lock().unwrap() = vec![[127, 0, 0, 9]];
    let text = dns(
        server,
        "dns = '_mcp._tcp.example'\npriority = 5\ntrusted = true\npath = '/x'",
    );
    let mut seen = Seen::start(&text, Path::new("/"), "");
    seen.names(&["d@a.example:1", "d@b.example:2"]).await;
    seen.discovery.settled().await;
    let found = seen.discovery.targets().services;
    // The hosts are looked up where the records are.
    let config::Transport::Http { url, .. } = &found[0].transport else {
        panic!("a URL");
    };
    assert_eq!(url.value(), "http://127.0.0.9:1/x");
    let facts: Vec<_> = found
        .iter()
        .map(|s| (s.priority, s.weight, s.trusted))
        .collect();
    assert_eq!(facts, [(5, 7, true), (-5, 1, true)]);

    // The records live for a second: what changes is seen soon, whatever the interval says.
    zone.srv.lock().unwrap().remove(0);
    seen.names(&["d@a.example:1"]).await;
    // RFC 2782: `.` says that there is no such service.
    *zone.srv.lock().unwrap() = vec![(".", 0, 0, 0)];
    seen.names(&[]).await;
}

#[tokio::test]
async fn a_name_server_that_knows_nothing_takes_nothing_away() {
    let (zone, server) = Zone::serve();
    *zone.a.lock().unwrap() = vec![[127, 0, 0, 2], [127, 0, 0, 1]];
    let text = dns(
        server,
        "dns = 'mcp.example'\nport = 8080\nrecord = 'a'\ninterval = '1s'",
    );
    let mut seen = Seen::start(&text, Path::new("/"), "");
    let both = ["d@127.0.0.1:8080", "d@127.0.0.2:8080"];
    seen.names(&both).await;
    zone.failing.store(true, Ordering::SeqCst);
    assert!(seen.refusal().await.contains("ServerFailure"));
    zone.failing.store(false, Ordering::SeqCst);
    zone.unknown.store(true, Ordering::SeqCst);
    while !seen.refusal().await.contains("has no such records") {}
    assert_eq!(seen.now(), both);
    // It goes on asking, and hears of what is new.
    zone.unknown.store(false, Ordering::SeqCst);
    zone.a.lock().unwrap().push([127, 0, 0, 3]);
    seen.names(&[both[0], both[1], "d@127.0.0.3:8080"]).await;
}

#[tokio::test]
async fn a_silent_name_server_is_passed_over_and_a_long_answer_comes_over_tcp() {
    let ((silent, first), (zone, second)) = (Zone::serve(), Zone::serve());
    silent.silent.store(true, Ordering::SeqCst);
    zone.truncating.store(true, Ordering::SeqCst);
    *zone.a.lock().unwrap() = vec![[10, 0, 0, 1]];
    let text = format!(
        "[[discovery]]\nname = 'd'\ndns = 'x.example'\nrecord = 'a'\nport = 1\nnameservers = ['{first}', '{second}']\n"
    );
    let mut seen = Seen::start(&text, Path::new("/"), "");
    seen.names(&["d@10.0.0.1:1"]).await;
    assert!(silent.asked.load(Ordering::SeqCst) >= 1);
    assert!(zone.over_tcp.load(Ordering::SeqCst) >= 1);
}

const FILE: &str = "[[service]]\nname = 'fixed'\nurl = 'http://localhost:1/mcp'\n\
                    [[discovery]]\nname = 'f'\nfile = 'more.toml'\n";

fn one(name: &str) -> String {
    format!("[[service]]\nname = '{name}'\nurl = 'http://localhost:2/mcp'\n")
}

#[tokio::test]
async fn a_file_is_followed_through_every_way_of_editing_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("more.toml");
    let mut seen = Seen::start(FILE, folder.path(), "unwanted");
    // It is not there yet, which stops nothing.
    assert!(seen.refusal().await.contains("cannot be read"));
    seen.discovery.settled().await;
    assert_eq!(seen.now(), ["fixed"]);
    std::fs::write(&file, one("a")).unwrap();
    seen.names(&["fixed", "a"]).await;
    // An editor writes another file and renames it.
    let other = folder.path().join(".more.toml.swp");
    std::fs::write(&other, one("b")).unwrap();
    std::fs::rename(&other, &file).unwrap();
    seen.names(&["fixed", "b"]).await;
    // Half written.
    std::fs::write(&file, "").unwrap();
    assert!(seen.refusal().await.contains("may be half written"));
    // Wrong: with the place, the reason and the remedy.
    std::fs::write(&file, "[[service]]\nname = 'c'\nurll = 'http://x/'\n").unwrap();
    let refusal = seen.refusal().await;
    assert!(
        refusal.contains("more.toml:3:1: service[0].urll: unknown key"),
        "{refusal}"
    );
    assert!(refusal.contains("did you mean \"url\""), "{refusal}");
    // Right by itself, and yet a name that is taken.
    std::fs::write(&file, one("fixed")).unwrap();
    let refusal = seen.refusal().await;
    assert_eq!(
        refusal,
        "the configuration has a target named \"fixed\" already"
    );
    // And what the host itself refuses.
    std::fs::write(&file, one("unwanted")).unwrap();
    assert_eq!(seen.refusal().await, "\"unwanted\" is refused");
    std::fs::remove_file(&file).unwrap();
    assert!(seen.refusal().await.contains("cannot be read"));
    assert_eq!(seen.now(), ["fixed", "b"]);
    std::fs::write(&file, "service = []\n").unwrap();
    seen.names(&["fixed"]).await;
}

#[tokio::test]
async fn a_file_may_be_json_and_says_where_it_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("more.json");
    let json = "{\"service\": [\n  {\"name\": \"a\", \"url\": \"http:\\/\\/localhost:2/mcp\"}\n]}";
    std::fs::write(&file, json).unwrap();
    let text = "[[discovery]]\nname = 'f'\nfile = 'more.json'\n";
    let mut seen = Seen::start(text, folder.path(), "");
    seen.names(&["a"]).await;
    std::fs::write(
        &file,
        json.replace("\"url\"", "\"priority\": 1,\n   \"weight\": 0, \"url\""),
    )
    .unwrap();
    let refusal = seen.refusal().await;
    assert!(
        refusal.contains("more.json:3:14: service[0].weight: out of range"),
        "{refusal}"
    );
    std::fs::write(&file, "{\"service\": [}").unwrap();
    assert!(seen.refusal().await.contains("more.json:1:14: not JSON"));
    assert_eq!(seen.now(), ["a"]);
}

#[tokio::test]
async fn dropping_it_ends_the_search() {
    let (zone, server) = Zone::serve();
    *zone.a.lock().unwrap() = vec![[10, 0, 0, 1]];
    let text = dns(
        server,
        "dns = 'x.example'\nrecord = 'a'\nport = 1\ninterval = '1s'",
    );
    let mut seen = Seen::start(&text, Path::new("/"), "");
    seen.names(&["d@10.0.0.1:1"]).await;
    drop(seen.discovery);
    let asked = zone.asked.load(Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(zone.asked.load(Ordering::SeqCst), asked);
}

#[tokio::test]
async fn a_source_that_stays_keeps_what_it_found_and_one_that_goes_takes_it_along() {
    let (zone, server) = Zone::serve();
    *zone.a.lock().unwrap() = vec![[10, 0, 0, 1]];
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("more.toml"), one("a")).unwrap();
    let dns = dns(
        server,
        "dns = 'x.example'\nrecord = 'a'\nport = 1\ninterval = '1s'",
    );
    let mut seen = Seen::start(&format!("{FILE}{dns}"), folder.path(), "");
    let all = ["fixed", "a", "d@10.0.0.1:1"];
    seen.names(&all).await;
    zone.silent.store(true, Ordering::SeqCst);

    let replace = |text: &str| {
        let loaded = Config::parse(text, &folder.path().join("backstop.toml"), &|_| None);
        assert!(!loaded.has_errors(), "{:?}", loaded.diagnostics);
        let (tell, told) = watch::channel(Targets::default());
        let sink = move |targets: &Targets| {
            if targets.names().any(|name| name == "unwanted") {
                return Err("it is unwanted".to_owned());
            }
            tell.send_replace(targets.clone());
            Ok(())
        };
        let fixed = Targets {
            services: loaded.config.services,
            models: loaded.config.models,
        };
        let sources = &loaded.config.discoveries;
        let replaced = seen.discovery.replace(fixed, sources, Arc::new(sink));
        replaced.map(|()| told)
    };
    // What is refused changes nothing.
    let twice = replace(&format!("{}{FILE}{dns}", one("a"))).unwrap_err();
    assert!(
        twice.contains("more.toml has a target named \"a\" already"),
        "{twice}"
    );
    assert_eq!(replace(&one("unwanted")).unwrap_err(), "it is unwanted");
    assert_eq!(seen.now(), all);
    // The name server is silent, and yet its targets stay: the source is the same.
    let told = replace(&format!("{}{dns}", one("other"))).unwrap();
    assert_eq!(
        told.borrow().names().collect::<Vec<_>>(),
        ["other", "d@10.0.0.1:1"]
    );
    std::fs::write(folder.path().join("more.toml"), one("late")).unwrap();
    // A source that is new is searched; the one that is gone is heard no more.
    std::fs::write(folder.path().join("third.toml"), one("third")).unwrap();
    let third = "[[discovery]]\nname = 't'\nfile = 'third.toml'\n";
    seen.told = replace(&format!("{}{third}{dns}", one("other"))).unwrap();
    seen.names(&["other", "third", "d@10.0.0.1:1"]).await;
    seen.discovery.settled().await;
}

#[cfg(unix)]
#[tokio::test]
async fn a_watched_file_is_seen_through_the_swap_of_a_link_to_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let version = |name: &str, text: &str| {
        let of = folder.path().join(name);
        std::fs::create_dir(&of).unwrap();
        std::fs::write(of.join("c.toml"), text).unwrap();
        let link = folder.path().join("..data_tmp");
        std::os::unix::fs::symlink(name, &link).unwrap();
        std::fs::rename(&link, folder.path().join("..data")).unwrap();
    };
    version("..1", "one");
    let file = folder.path().join("c.toml");
    std::os::unix::fs::symlink("..data/c.toml", &file).unwrap();
    let mut watch = FileWatch::after(file.clone(), "one".into());
    let limit = Duration::from_secs(20);
    let nothing = tokio::time::timeout(Duration::from_millis(300), watch.next()).await;
    assert!(nothing.is_err(), "it is as it was");
    version("..2", "two");
    let next = tokio::time::timeout(limit, watch.next()).await.unwrap();
    assert_eq!(next, Ok("two".to_owned()));
    // Asked for at once, it is not told again.
    std::fs::write(folder.path().join("..2/c.toml"), "three").unwrap();
    assert_eq!(watch.now().await, Ok("three".to_owned()));
    std::fs::remove_file(&file).unwrap();
    let gone = tokio::time::timeout(limit, watch.next()).await.unwrap();
    assert!(gone.unwrap_err().contains("cannot be read"));
}
