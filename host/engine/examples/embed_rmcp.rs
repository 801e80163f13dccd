//! An MCP client, made with rmcp, whose `call_tool` survives the end of a server.
#![allow(clippy::print_stdout)]
mod support;

use std::path::Path;

use backstop::config::Config;
use backstop::rmcp::FallbackClient;
use backstop::strategy::component::{Runtime, RuntimeOptions};
use rmcp::ServiceExt;
use rmcp::model::CallToolRequestParams;
use rmcp::transport::StreamableHttpClientTransport as Http;
use support::WeatherServer;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // What a client of two servers has already.
    let servers = WeatherServer::pair()?;
    let primary = ().serve(Http::from_uri(servers.0.url())).await?;
    let backup = ().serve(Http::from_uri(servers.1.url())).await?;

    // What is new: an engine with the stock strategies, and one client in front of the two.
    let runtime = Runtime::new(RuntimeOptions::default())?;
    let assembled = backstop::assemble(&Config::default(), Path::new(""), &runtime).await?;
    let client = FallbackClient::builder(assembled.engine, "weather")
        .server("primary", &primary)
        .server("backup", &backup)
        .build()?;

    let city = serde_json::Map::from_iter([("city".to_owned(), "Oslo".into())]);
    let call = CallToolRequestParams::new("weather").with_arguments(city);
    println!("{:?}", client.call_tool(call.clone()).await?);
    servers.0.stop().await;
    println!("{:?}", client.call_tool(call).await?);
    Ok(())
}
