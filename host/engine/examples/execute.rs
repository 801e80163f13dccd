//! Fallback for any asynchronous operation: here, reading a number from one of two TCP services.
#![allow(clippy::print_stdout)]

use std::io::{Error, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;

use backstop::config::Config;
use backstop::registry::TargetSpec;
use backstop::strategy::component::{Runtime, RuntimeOptions};
use backstop::{Call, Kind};

/// The operation: it knows nothing of fallback.
async fn read_number(address: SocketAddr) -> Result<String, Error> {
    tokio::task::spawn_blocking(move || std::io::read_to_string(TcpStream::connect(address)?))
        .await?
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // One service that is down, and one that answers 42.
    let down = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let up = listener.local_addr()?;
    std::thread::spawn(move || listener.accept()?.0.write_all(b"42"));

    let runtime = Runtime::new(RuntimeOptions::default())?;
    let assembled = backstop::assemble(&Config::default(), Path::new(""), &runtime).await?;
    let engine = assembled.engine;
    for (name, address, priority) in [("primary", down, 1), ("backup", up, 0)] {
        let spec = TargetSpec::service(name, "numbers").url(address.to_string());
        engine.registry().register(spec.priority(priority))?;
    }

    let outcome = engine
        .execute(Call::new("numbers", "read"), |target| async move {
            let url = target.spec.url.as_deref().unwrap_or_default();
            read_number(url.parse().map_err(Error::other)?).await
        })
        .await?;
    let server = outcome.served_by.as_deref().unwrap_or("data");
    println!("{} from {server}", outcome.answer);
    let failed = outcome.trouble.map_or(0, |trouble| {
        let attempts = trouble.attempts.iter();
        let refused = attempts.filter(|a| a.failure.kind == Kind::CONNECTION_ERROR);
        refused.count()
    });
    println!("after {failed} refused connections");
    Ok(())
}
