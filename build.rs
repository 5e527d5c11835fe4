//! Generates the Pub/Sub API types from `schemas/pubsub_api.proto`. protox compiles the file, so no protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=schemas/pubsub_api.proto");
    let descriptors = protox::compile(["schemas/pubsub_api.proto"], ["schemas"])?;
    tonic_prost_build::configure().build_client(true).build_server(true).compile_fds(descriptors)?;
    Ok(())
}
