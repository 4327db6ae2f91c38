import Foundation
import Testing

@testable import ModditCore

/// The bundles of manifests.json, written as folders.
struct TestBundle {
    let folder: URL
    let manifest: JSON

    /// Writes a bundle: every file holds its own path, but the tokenizer.
    ///
    /// - Parameters:
    ///   - changed: replaces the manifest.
    ///   - bytes: replaces the bytes of its file.
    init(_ name: String, changed: JSON? = nil, manifest bytes: Data? = nil) throws {
        manifest = try changed ?? Self.manifest(name).value
        folder = FileManager.default.temporaryDirectory.appendingPathComponent("moddit-\(UUID().uuidString)")
        for component in try JSONField(manifest, place: "", component: "")["components"].object().values {
            for file in try component["files"].array() { try write(file["path"].string()) }
        }
        try (bytes ?? Data(manifest.encoded.utf8)).write(to: folder.appendingPathComponent("manifest.json"))
    }

    private func write(_ path: String) throws {
        let url = folder.appendingPathComponent(path)
        try FileManager.default.createDirectory(at: url.deletingLastPathComponent(), withIntermediateDirectories: true)
        let data = path == "tokenizer.json" ? try Golden.data("embedded-tokenizer.json") : Data(path.utf8)
        try data.write(to: url)
    }

    func remove() {
        try? FileManager.default.removeItem(at: folder)
    }

    static let names = ["routed", "dense", "labels", "chain"]

    static func item(_ name: String) throws -> JSONField {
        let items = try Golden.items("manifests.json", "manifests")
        return try #require(items.first { try $0["name"].string() == name })
    }

    static func manifest(_ name: String) throws -> JSONField {
        try item(name)["manifest"]
    }
}
