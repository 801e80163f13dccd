//! Fallback behind an HTTP client in a stack of tower layers: here `reqwest`.
#![allow(clippy::print_stdout)]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;

use backstop::config::Config;
use backstop::registry::TargetSpec;
use backstop::strategy::component::{Runtime, RuntimeOptions};
use backstop::tower::{FallbackLayer, Served};
use http::{Request, Response};
use tower::{ServiceBuilder, ServiceExt, service_fn};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // One service that is down, and one that answers.
    let down = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let up = listener.local_addr()?;
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        let _ = stream.read(&mut [0; 4096])?;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n42")
    });

    let runtime = Runtime::new(RuntimeOptions::default())?;
    let assembled = backstop::assemble(&Config::default(), Path::new(""), &runtime).await?;
    let engine = assembled.engine;
    for (name, address, priority) in [("primary", down, 1), ("backup", up, 0)] {
        let spec = TargetSpec::service(name, "numbers").url(format!("http://{address}/v1"));
        engine.registry().register(spec.priority(priority))?;
    }

    // What a program has already, and the layer.
    let reqwest = reqwest::Client::builder().no_proxy().build()?;
    let client = ServiceBuilder::new()
        .layer(FallbackLayer::new(engine, "numbers"))
        .service(service_fn(move |request: Request<String>| {
            let reqwest = reqwest.clone();
            async move {
                let answer = reqwest.execute(request.try_into()?).await?;
                Ok::<Response<reqwest::Body>, reqwest::Error>(answer.into())
            }
        }));

    let answer = client
        .oneshot(Request::get("/number").body(String::new())?)
        .await?;
    let served = answer.extensions().get::<Served>().cloned();
    let number = reqwest::Response::from(answer).text().await?;
    let served = served.ok_or("it does not say who answered")?;
    let by = served.by.as_deref().unwrap_or("nobody");
    println!("{number} from {by} after {} attempts", served.attempts);
    Ok(())
}
