#if canImport(CryptoKit)
import CryptoKit
#endif
import Foundation

/// SHA-256 of bytes that arrive in parts: CryptoKit's, or where there is none a portable one.
struct SHA256Hash {
    #if canImport(CryptoKit)
    private var hash = SHA256()
    #else
    private var hash = PortableSHA256()
    #endif

    /// Begins a hash.
    init() {}

    /// Hashes bytes that are all in memory.
    ///
    /// - Returns: 64 hexadecimal digits.
    static func hash(_ bytes: some Sequence<UInt8>) -> String {
        var hash = SHA256Hash()
        hash.update(Array(bytes))
        return hash.finish()
    }

    /// Hashes a file, a part at a time.
    ///
    /// - Throws: `ModditError.missing` if it cannot be opened, `ModditError.format` if it cannot be read to its end.
    static func hash(fileAt url: URL) throws(ModditError) -> String {
        guard let file = try? FileHandle(forReadingFrom: url) else {
            throw .missing("[manifest] \(url.path): cannot be opened; convert the checkpoint again")
        }
        defer { try? file.close() }
        var hash = SHA256Hash()
        do {
            while try pooled({
                guard let part = try file.read(upToCount: 1 << 20), !part.isEmpty else { return false }
                hash.update([UInt8](part))
                return true
            }) {}
        } catch {
            throw .format("[manifest] \(url.path): cannot be read (\(error)); check the disk, or convert again")
        }
        return hash.finish()
    }

    /// Adds bytes.
    mutating func update(_ bytes: [UInt8]) {
        #if canImport(CryptoKit)
        hash.update(data: bytes)
        #else
        hash.update(bytes)
        #endif
    }

    /// Gives the hash of everything added.
    ///
    /// - Returns: 64 hexadecimal digits.
    consuming func finish() -> String {
        #if canImport(CryptoKit)
        let bytes = Array(hash.finalize())
        #else
        let bytes = hash.finish()
        #endif
        return bytes.map { byte in (byte < 16 ? "0" : "") + String(byte, radix: 16) }.joined()
    }
}

/// Runs a part of a loop and gives its temporary objects back, which Apple's Foundation otherwise keeps to the end.
private func pooled<Result>(_ body: () throws -> Result) rethrows -> Result {
    #if canImport(Darwin)
    try autoreleasepool(invoking: body)
    #else
    try body()
    #endif
}
