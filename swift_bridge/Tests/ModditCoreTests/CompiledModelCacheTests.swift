import Foundation
import Testing

@testable import ModditCore

struct CompiledModelCacheTests {
    @Test func storesFindsAndRemoves() throws {
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent("moddit-\(UUID().uuidString)")
        defer { try? FileManager.default.removeItem(at: folder) }
        let cache = try CompiledModelCache(folder: folder.appendingPathComponent("cache"))
        let hash = SHA256Hash.hash("package".utf8)
        #expect(cache.find(hash) == nil)
        let stored = try cache.store(compiled("first", in: folder), hash: hash)
        #expect(cache.find(hash) == stored)
        #expect(stored.lastPathComponent == "\(hash).mlmodelc")
        // another process was faster: its model stays
        #expect(try cache.store(compiled("second", in: folder), hash: hash) == stored)
        #expect(try String(contentsOf: stored.appendingPathComponent("model"), encoding: .utf8) == "first")
        #expect(FileManager.default.fileExists(atPath: folder.appendingPathComponent("second").path) == false)
        try cache.remove(hash)
        try cache.remove(hash)
        #expect(cache.find(hash) == nil)
    }

    @Test func folderThatCannotBeMade() throws {
        let cache = try CompiledModelCache(folder: URL(fileURLWithPath: "/dev/null/cache"))
        let source = URL(fileURLWithPath: "/absent")
        #expect(throws: ModditError.self) { try cache.store(source, hash: "00") }
    }

    @Test func defaultFolderIsTheUsers() throws {
        #expect(try CompiledModelCache().folder.path.hasSuffix("moddit/compiled"))
    }

    private func compiled(_ name: String, in folder: URL) throws -> URL {
        let url = folder.appendingPathComponent(name)
        try FileManager.default.createDirectory(at: url, withIntermediateDirectories: true)
        try Data(name.utf8).write(to: url.appendingPathComponent("model"))
        return url
    }
}
